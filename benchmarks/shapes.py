"""The models to measure: sizes of the releases with random weights, or files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.models.family import Family
from diversevar_core.models.infinity import Infinity, InfinityConfig
from diversevar_core.models.var import RELEASED_SIDES, VAR, VARConfig
from diversevar_core.schedule import Scale
from diversevar_core.vae.autoencoder import AutoencoderConfig
from diversevar_core.vae.bsq import BSQ
from diversevar_core.vae.vae import VAE
from diversevar_core.vae.vqvae import VQVAE, VQVAEConfig

PROMPT = 32  # tokens
TEXT = 2048  # width of flan-t5-xl
STD = 0.02  # of random weights


@dataclass(frozen=True)
class Shape:
    """A transformer's and its tokenizer's sizes."""

    model: InfinityConfig | VARConfig
    tokenizer: AutoencoderConfig | VQVAEConfig


def infinity(
    width: int, depth: int, heads: int, bits: int, pixels: str, edits: bool = False
) -> Shape:
    """An Infinity that reads flan-t5-xl; from 56 bits on, its tokens are patches of 2 x 2."""
    patch = 2 if bits >= 56 else 1
    sizes = width, depth, heads, bits, TEXT, 4 * width, 512, depth, True
    model = InfinityConfig(*sizes, sides=None, pixels=pixels, edits=edits)
    widths = (128, 256, 512, 512, 512)[: 6 - patch]
    return Shape(model, AutoencoderConfig(widths, len(widths) - 1, bits // patch**2, False))


def var(depth: int) -> Shape:
    """A VAR of 256 pixels."""
    sides = RELEASED_SIDES[10, 680]
    autoencoder = AutoencoderConfig((160, 160, 320, 320, 640), 4, 32, True)
    model = VARConfig(64 * depth, depth, depth, 1000, 32, 4096, sides, shared_ada=False)
    return Shape(model, VQVAEConfig(autoencoder, 4096, 4))


SHAPES: dict[str, Shape | None] = {
    "infinity-125m": infinity(768, 12, 8, 16, "0.06M"),
    "infinity-2b": infinity(2048, 32, 16, 32, "1M"),
    "infinity-8b": infinity(3584, 40, 28, 56, "1M"),
    "varedit-125m": infinity(768, 12, 8, 16, "0.06M", edits=True),
    "var-d16": var(16),
    "var-d30": var(30),
    "emoji": None,  # the included model's files
}


def build(
    name: str, device: str, dtype: torch.dtype, files: tuple[str, str] | None = None
) -> tuple[Family, VAE]:
    """A model of ``SHAPES`` and its tokenizer; files: theirs, in place of random weights."""
    shape = SHAPES[name]
    if files is None and shape is None:
        files = included.MODEL, included.VAE
    if files is not None:
        return load_model(files[0], device, dtype), load_vae(files[1], device, dtype)
    is_infinity = isinstance(shape.model, InfinityConfig)
    family, kind = (Infinity, BSQ) if is_infinity else (VAR, VQVAE)
    model = family(shape.model, device=device, dtype=dtype)
    tokenizer = kind(shape.tokenizer, device=device, dtype=dtype)
    return fill_randomly(model), fill_randomly(tokenizer)


@torch.no_grad()
def fill_randomly(module: nn.Module) -> nn.Module:
    """Small random weights, the same for modules of the same parameters; norms near identity."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        values = STD * torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name and name.endswith("weight")
        parameter.copy_(1 + values if is_norm else values)
    return module.requires_grad_(False).eval()


def condition(model: Family, batch: int, last: Scale, device: str) -> Condition:
    """A condition: labels, or random text features and, for editing, a source (B, bits, h, w)."""
    if model.reads is Labels:
        return Labels(torch.arange(batch, device=device))
    generator = torch.Generator().manual_seed(1)
    rows = 0.2 * torch.randn(batch, PROMPT, model.config.text, generator=generator)
    source = None
    if model.edits:
        size = batch, model.config.bits, last.h, last.w
        source = torch.randn(size, generator=generator).to(device)
    return Text(list(rows.to(device)), source=source)


Sampled = tuple[list[Tensor], Tensor]
"""Tokens or bits of every map, and f_hat."""


@dataclass(frozen=True)
class Side:
    """One implementation of a model, ready to run."""

    name: str
    sample: Callable[[], Sampled]
    decode: Callable[[Tensor], Tensor]  # f_hat -> image in -1..1
