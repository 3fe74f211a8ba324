"""ImageReward: a learned score of how people rate an image for its prompt.

Xu et al., arXiv 2304.05977. The released ``ImageReward.pt`` is BLIP (arXiv 2201.12086) under its
original names: a vision transformer, a BERT whose layers also read the picture, and five linear
layers that score the first token. The transformers library has both networks; only the names
differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

HEAD = 64  # channels of an attention head, in both networks
TOKENS = 35  # of the prompt, its two ends included
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the scores in training

VISION_NAMES = (
    (r"^cls_token", "embeddings.class_embedding"),
    (r"^pos_embed", "embeddings.position_embedding"),
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
)


@dataclass(frozen=True)
class ImageReward:
    """The networks; call them with pictures and prompts. score: weight and bias of each layer."""

    vision: BlipVisionModel
    text: BlipTextModel
    score: Sequence[tuple[Tensor, Tensor]]
    tokenizer: Tokenizer

    @property
    def side(self) -> int:
        """Height and width of the pictures that it reads."""
        return self.vision.config.image_size

    @torch.no_grad()
    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of pictures (B, 3, side, side), normalized as CLIP's."""
        seen = self.vision(pixel_values=pictures).last_hidden_state
        read = self.tokenizer.encode_batch(list(prompts))
        x = self.text(
            input_ids=torch.tensor([row.ids for row in read], device=seen.device),
            attention_mask=torch.tensor([row.attention_mask for row in read], device=seen.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2], dtype=torch.long),
        ).last_hidden_state[:, 0]
        for weight, bias in self.score:
            x = F.linear(x, weight, bias)
        return (x.squeeze(1) - MEAN) / DEVIATION


def build(tensors: Mapping[str, Tensor], tokenizer: Tokenizer, device: str) -> ImageReward:
    """The networks of a released file's tensors; sizes are read off them.

    tokenizer: BERT's, uncased. Raises KeyError for a tensor that is missing.
    """
    vision, text, score = (
        {key.removeprefix(part): tensor for key, tensor in tensors.items() if key.startswith(part)}
        for part in ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")
    )
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()
    layers = sorted(int(key.split(".")[0]) for key in score if key.endswith("weight"))
    return ImageReward(
        fill(BlipVisionModel(vision_config(vision)), {rename(k): t for k, t in vision.items()})
        .to(device)
        .eval(),
        fill(BlipTextModel(text_config(text), add_pooling_layer=False), text).to(device).eval(),
        [(score[f"{i}.weight"].to(device), score[f"{i}.bias"].to(device)) for i in layers],
        tokenizer,
    )


def rename(key: str) -> str:
    """A vision tensor's name in the transformers library."""
    for pattern, name in VISION_NAMES:
        key = re.sub(pattern, name, key)
    return key


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put the tensors in; KeyError where a parameter has none."""
    model.load_state_dict(tensors, strict=False)
    for name, _ in model.named_parameters():
        tensors[name]
    return model


def vision_config(tensors: Mapping[str, Tensor]) -> BlipVisionConfig:
    """Sizes of the vision transformer."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    places = tensors["pos_embed"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=depth(tensors, "blocks."),
        num_attention_heads=width // HEAD,
        image_size=patch * round(places**0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(tensors: Mapping[str, Tensor]) -> BlipTextConfig:
    """Sizes of the text encoder; ``is_decoder`` gives its layers the cross-attention."""
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    crossed = tensors["encoder.layer.0.crossattention.self.key.weight"]
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=crossed.shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=depth(tensors, "encoder.layer."),
        num_attention_heads=width // HEAD,
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,
    )


def depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered layers there are."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})
