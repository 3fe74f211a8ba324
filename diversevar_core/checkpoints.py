"""Tensors of a checkpoint -> which family -> built model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .families import FAMILIES
from .families.family import Family
from .files import CheckpointError, naming, read
from .tokenizers import TOKENIZERS
from .tokenizers.tokenizer import Tokenizer

# buffers of the original modules that carry nothing
BUFFERS = ("zero_k_bias", "lvl_1L", "attn_bias_for_masking", "ema_vocab_hit_SV")


def is_model(keys: Collection[str]) -> bool:
    """Whether ``load_model`` takes these tensors."""
    return any(family.recognises(keys) for family in FAMILIES)


def is_tokenizer(keys: Collection[str]) -> bool:
    """Whether ``load_tokenizer`` takes these tensors."""
    return any(kind.recognises(keys) for kind in TOKENIZERS)


def describe(keys: Collection[str]) -> str:
    """What these tensors seem to be, for an error message."""
    if is_model(keys):
        return "a VAR transformer"
    if is_tokenizer(keys):
        return "a VAR tokenizer"
    if any("lora_" in key for key in keys):
        return "a LoRA"
    diffusion = ("model.diffusion_model.", "double_blocks.", "joint_blocks.", "input_blocks.")
    if any(key.startswith(diffusion) or "down_blocks." in key for key in keys):
        return "a diffusion model"
    if any(key.startswith(("encoder.block.", "shared.")) for key in keys):
        return "a text encoder"
    if any(key.startswith(("decoder.conv_in", "first_stage_model.")) for key in keys):
        return "a diffusion model's VAE"
    return f"something else ({len(keys)} tensors, such as {', '.join(sorted(keys)[:2]) or 'none'})"


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
    attention: Attention = sdpa,
    task: str | None = None,
) -> Family:
    """Load a VAR or Infinity transformer.

    dtype: None computes in float32 on a CPU and as stored elsewhere. operations, attention: where
    the layer classes and the attention kernel come from. task: generate or edit, where the user
    knows better than the file. Raises CheckpointError.
    """
    file = read(path, is_model)
    if not is_model(file.tensors):
        raise CheckpointError(
            f"{path} is {describe(file.tensors)}, not a VAR or Infinity transformer; "
            "choose one of those."
        )
    family = next(family for family in FAMILIES if family.recognises(file.tensors))
    with naming(path):
        config = family.read_config(file.tensors, file.facts | ({"task": task} if task else {}))
    tensors = family.rename(file.tensors)
    dtype = dtype or compute_dtype(tensors["word_embed.weight"], device)
    model = family(config, operations, attention, device="meta", dtype=dtype)
    unknown = sorted(set(tensors) - set(model.state_dict()))
    unknown = [key for key in unknown if not key.endswith(BUFFERS)]
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that no {family.name} release has, such as "
            f"{unknown[0]}; this variant is not supported."
        )
    fill(model, tensors, device, path)
    return model


def load_tokenizer(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
) -> Tokenizer:
    """Load VAR's or Infinity's tokenizer, as ``load_model`` does. Raises CheckpointError."""
    file = read(path, is_tokenizer)
    if not is_tokenizer(file.tensors):
        raise CheckpointError(
            f"{path} is {describe(file.tensors)}, not VAR's or Infinity's tokenizer; "
            "choose one of those."
        )
    kind = next(kind for kind in TOKENIZERS if kind.recognises(file.tensors))
    tensors = kind.rename(file.tensors)
    with naming(path):
        config = kind.read_config(tensors)
    dtype = dtype or compute_dtype(tensors["decoder.conv_in.weight"], device)
    tokenizer = kind(config, operations, device="meta", dtype=dtype)
    fill(tokenizer, tensors, device, path)
    return tokenizer


def compute_dtype(stored: Tensor, device: torch.device | str) -> torch.dtype:
    """float32 on a CPU, where half precision is slow; else as stored."""
    return torch.float32 if torch.device(device).type == "cpu" else stored.dtype


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str, path: str | Path
) -> None:
    """Put the tensors into a module built on the meta device, each in the place's own dtype."""
    places = module.state_dict()
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(places)} tensors, such as {missing[0]}; "
            "download it again."
        )
    placed = {}
    for name, place in places.items():
        tensor = tensors[name]
        if tensor.numel() != place.numel():
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)} where {list(place.shape)} is "
                "needed; this variant is not supported."
            )
        placed[name] = tensor.to(device, place.dtype).reshape(place.shape)
    module.load_state_dict(placed, assign=True)
    module.requires_grad_(False).eval()
