"""Small random networks in the layouts of the files that users have."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

# block -> its convolutions: name, channels in (0: the block's own), channels out, kernel
STEM = (
    ("Conv2d_1a_3x3", 3, 32, (3, 3)),
    ("Conv2d_2a_3x3", 32, 32, (3, 3)),
    ("Conv2d_2b_3x3", 32, 64, (3, 3)),
    ("Conv2d_3b_1x1", 64, 80, (1, 1)),
    ("Conv2d_4a_3x3", 80, 192, (3, 3)),
)


def block_a(pooled: int) -> tuple:
    return (
        ("branch1x1", 0, 64, (1, 1)),
        ("branch5x5_1", 0, 48, (1, 1)),
        ("branch5x5_2", 48, 64, (5, 5)),
        ("branch3x3dbl_1", 0, 64, (1, 1)),
        ("branch3x3dbl_2", 64, 96, (3, 3)),
        ("branch3x3dbl_3", 96, 96, (3, 3)),
        ("branch_pool", 0, pooled, (1, 1)),
    )


def block_c(middle: int) -> tuple:
    return (
        ("branch1x1", 0, 192, (1, 1)),
        ("branch7x7_1", 0, middle, (1, 1)),
        ("branch7x7_2", middle, middle, (1, 7)),
        ("branch7x7_3", middle, 192, (7, 1)),
        ("branch7x7dbl_1", 0, middle, (1, 1)),
        ("branch7x7dbl_2", middle, middle, (7, 1)),
        ("branch7x7dbl_3", middle, middle, (1, 7)),
        ("branch7x7dbl_4", middle, middle, (7, 1)),
        ("branch7x7dbl_5", middle, 192, (1, 7)),
        ("branch_pool", 0, 192, (1, 1)),
    )


BLOCK_E = (
    ("branch1x1", 0, 320, (1, 1)),
    ("branch3x3_1", 0, 384, (1, 1)),
    ("branch3x3_2a", 384, 384, (1, 3)),
    ("branch3x3_2b", 384, 384, (3, 1)),
    ("branch3x3dbl_1", 0, 448, (1, 1)),
    ("branch3x3dbl_2", 448, 384, (3, 3)),
    ("branch3x3dbl_3a", 384, 384, (1, 3)),
    ("branch3x3dbl_3b", 384, 384, (3, 1)),
    ("branch_pool", 0, 192, (1, 1)),
)
BLOCKS = {
    "Mixed_5b": (192, block_a(32)),
    "Mixed_5c": (256, block_a(64)),
    "Mixed_5d": (288, block_a(64)),
    "Mixed_6a": (
        288,
        (
            ("branch3x3", 0, 384, (3, 3)),
            ("branch3x3dbl_1", 0, 64, (1, 1)),
            ("branch3x3dbl_2", 64, 96, (3, 3)),
            ("branch3x3dbl_3", 96, 96, (3, 3)),
        ),
    ),
    "Mixed_6b": (768, block_c(128)),
    "Mixed_6c": (768, block_c(160)),
    "Mixed_6d": (768, block_c(160)),
    "Mixed_6e": (768, block_c(192)),
    "Mixed_7a": (
        768,
        (
            ("branch3x3_1", 0, 192, (1, 1)),
            ("branch3x3_2", 192, 320, (3, 3)),
            ("branch7x7x3_1", 0, 192, (1, 1)),
            ("branch7x7x3_2", 192, 192, (1, 7)),
            ("branch7x7x3_3", 192, 192, (7, 1)),
            ("branch7x7x3_4", 192, 192, (3, 3)),
        ),
    ),
    "Mixed_7b": (1280, BLOCK_E),
    "Mixed_7c": (2048, BLOCK_E),
}


def inception_weights(divide: int) -> dict[str, Tensor]:
    """A random state dict in the layout of ``pt_inception-2015-12-05-6726825d.pth``.

    divide: of all widths; 1 is the released size. Made without a generator, so that the values
    are the same on every version of torch.
    """
    tensors = {}

    def convolution(name: str, before: int, after: int, kernel: tuple[int, int]) -> None:
        before, after = before if before == 3 else before // divide, after // divide
        shape = (after, before, *kernel)
        wave = waves(shape, seed=len(tensors))
        tensors[f"{name}.conv.weight"] = wave * math.sqrt(4 / wave[0].numel())
        tensors[f"{name}.bn.weight"] = 1 + 0.2 * waves((after,), 1 + len(tensors))
        tensors[f"{name}.bn.bias"] = 0.2 * waves((after,), 2 + len(tensors))
        tensors[f"{name}.bn.running_mean"] = 0.2 * waves((after,), 3 + len(tensors))
        tensors[f"{name}.bn.running_var"] = 1 + 0.2 * waves((after,), 4 + len(tensors))
        tensors[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)

    for name, before, after, kernel in STEM:
        convolution(name, before, after, kernel)
    for block, (width, convolutions) in BLOCKS.items():
        for name, before, after, kernel in convolutions:
            convolution(f"{block}.{name}", before or width, after, kernel)
    tensors["fc.weight"] = waves((1008, 2048 // divide), 0)
    tensors["fc.bias"] = waves((1008,), 1)
    return tensors


def waves(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in -1..1 without a pattern, each from its place and the seed alone."""
    places = torch.arange(math.prod(shape), dtype=torch.float64) + 7919 * (seed + 1)
    return ((places.sin() * 43758.5453).frac()).float().view(shape)


def inception_pictures() -> Tensor:
    """Two pictures (2, 3, 299, 299), uint8: bands in different directions, under some noise."""
    down, right = torch.arange(299.0)[:, None], torch.arange(299.0)
    bands = torch.stack([(down / 9).sin() * (right / 50).cos(), ((down + 2 * right) / 30).sin()])
    noisy = 0.8 * bands[:, None] + 0.2 * waves((2, 3, 299, 299), seed=5)
    return ((noisy + 1) * 127).to(torch.uint8)


def write_inception(path: Path, divide: int) -> Path:
    """The file of a random Inception."""
    torch.save(inception_weights(divide), path)
    return path


def write_clip(folder: Path) -> Path:
    """A tiny random CLIP with a tokenizer of single letters, as the transformers library saves."""
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    config |= {"unk_token": "<|endoftext|>", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    ends = {"bos_token_id": len(words), "eos_token_id": len(words) + 1}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=sizes | ends | {"vocab_size": len(vocabulary), "projection_dim": 24},
            vision_config=sizes | {"image_size": 32, "patch_size": 8, "projection_dim": 24},
            projection_dim=24,
        )
    ).save_pretrained(folder)
    return folder


def image_reward_weights(depth: int = 2, width: int = 64) -> dict[str, Tensor]:
    """A random state dict in the layout of ``ImageReward.pt``: 32 pixels, patches of 8."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 0.3)

    def linear(name: str, before: int, after: int) -> None:
        add(f"{name}.weight", after, before)
        add(f"{name}.bias", after)

    def norm(name: str) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    add(f"{vision}.cls_token", 1, 1, width)
    add(f"{vision}.pos_embed", 1, 17, width)
    add(f"{vision}.patch_embed.proj.weight", width, 3, 8, 8)
    add(f"{vision}.patch_embed.proj.bias", width)
    norm(f"{vision}.norm")
    add(f"{text}.embeddings.word_embeddings.weight", len(BERT_WORDS), width)
    add(f"{text}.embeddings.position_embeddings.weight", 40, width)
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    norm(f"{text}.embeddings.LayerNorm")
    for i in range(depth):
        block, layer = f"{vision}.blocks.{i}", f"{text}.encoder.layer.{i}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", width, 2 * width)
        linear(f"{block}.mlp.fc2", 2 * width, width)
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                linear(f"{layer}.{attention}.self.{part}", width, width)
            linear(f"{layer}.{attention}.output.dense", width, width)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", width, 2 * width)
        linear(f"{layer}.output.dense", 2 * width, width)
        norm(f"{layer}.output.LayerNorm")
    sizes = (width, 1024, 128, 64, 16, 1)
    for i, (before, after) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        linear(f"mlp.layers.{i}", before, after)
    linear("blip.vision_proj", width, 256)
    linear("blip.text_proj", width, 256)
    return tensors


BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "cat", "on", "the", "moon")


def write_image_reward(folder: Path) -> Path:
    """The folder of a random ImageReward, with a tokenizer of a few words in BERT's form."""
    folder.mkdir()
    torch.save(image_reward_weights(), folder / "ImageReward.pt")
    words = {word: i for i, word in enumerate(BERT_WORDS)}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
