"""Prompt -> text features, with a T5 encoder (flan-T5-xl for Infinity's releases).

T5, arXiv 1910.10683, run by the transformers library; all sizes are read off the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from .checkpoints import compute_dtype, describe, fill
from .files import CheckpointError, naming, read

MAX_TOKENS = 512  # what Infinity was trained with, end token included


def is_t5(keys) -> bool:
    """Whether these are a T5 encoder's tensors."""
    return "shared.weight" in keys and "encoder.final_layer_norm.weight" in keys


def read_config(tensors: dict[str, Tensor]) -> T5Config:
    """Sizes of a T5 encoder from its tensors' shapes (KeyError where one is missing)."""
    layer = "encoder.block.0.layer"
    vocabulary, width = tensors["shared.weight"].shape
    buckets, heads = tensors[f"{layer}.0.SelfAttention.relative_attention_bias.weight"].shape
    gated = f"{layer}.1.DenseReluDense.wi_0.weight" in tensors
    hidden = tensors[f"{layer}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"].shape[0]
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=tensors[f"{layer}.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=hidden,
        num_layers=len({key.split(".")[2] for key in tensors if key.startswith("encoder.block.")}),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )


def check_prompt(prompt: str) -> None:
    """Raise ValueError where there is nothing to read."""
    if not prompt.strip():
        raise ValueError("The prompt is empty; write what the picture should show.")


def check_length(tokens: int) -> None:
    """Raise ValueError where a prompt has more tokens than the model reads."""
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"The prompt is {tokens} tokens long and the model reads at most {MAX_TOKENS}; "
            "shorten it."
        )


@dataclass(frozen=True)
class T5File:
    """A T5 encoder as read: its sizes, its tensors, and where its tokenizer.json lies."""

    config: T5Config
    tensors: dict[str, Tensor]
    vocabulary: Path


def read_t5(path: str | Path, vocabulary: Path | None = None) -> T5File:
    """Read a T5 encoder from a Hugging Face folder or a single file.

    vocabulary: the tokenizer.json to use where there is none beside the file. Raises
    CheckpointError.
    """
    path = Path(path)
    file = read(path, is_t5)
    if not is_t5(file.tensors):
        raise CheckpointError(
            f"{path} is {describe(file.tensors)}, not a T5 text encoder; choose flan-t5-xl's."
        )
    beside = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if beside.is_file():
        vocabulary = beside
    if vocabulary is None:
        raise CheckpointError(f"There is no {beside}; put the text encoder's tokenizer.json there.")
    parts = ("encoder.block.", "encoder.final_layer_norm.", "shared.")
    tensors = {key: tensor for key, tensor in file.tensors.items() if key.startswith(parts)}
    with naming(path):
        return T5File(read_config(tensors), tensors, vocabulary)


class TextEncoder:
    """A T5 encoder and its tokenizer; call it with prompts."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: Tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features (length, Ct) float32 a prompt, end token included.

        Raises ValueError where a prompt is empty or longer than ``MAX_TOKENS``.
        """
        features = []
        for prompt in prompts:
            check_prompt(prompt)
            ids = self.tokenizer.encode(prompt).ids
            check_length(len(ids))
            ids = torch.tensor([ids], device=self.encoder.device)
            features.append(self.encoder(input_ids=ids).last_hidden_state[0].float())
        return features


def load_text_encoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> TextEncoder:
    """Load a T5 encoder from a Hugging Face folder, or from one file with its tokenizer beside it.

    The tokenizer is ``tokenizer.json`` in the same folder. dtype: None computes in float32 on a
    CPU and as stored elsewhere. Raises CheckpointError.
    """
    file = read_t5(path)
    embedding = file.tensors["shared.weight"]
    with torch.device("meta"):
        encoder = T5EncoderModel(file.config).to(dtype or compute_dtype(embedding, device))
    fill(encoder, file.tensors | {"encoder.embed_tokens.weight": embedding}, device, path)
    encoder.tie_weights()
    tokenizer = Tokenizer.from_file(str(file.vocabulary))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextEncoder(encoder, tokenizer)
