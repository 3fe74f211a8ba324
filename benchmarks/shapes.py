"""The models to measure: sizes of the releases, with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.job import PLAIN, Chain, room
from diversevar_core.models.family import Family
from diversevar_core.models.infinity import Infinity, InfinityConfig
from diversevar_core.models.var import RELEASED_SIDES, VAR, VARConfig
from diversevar_core.sampling.method import Method, Step
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import Schedule
from diversevar_core.settings import Settings
from diversevar_core.vae.autoencoder import AutoencoderConfig
from diversevar_core.vae.bsq import BSQ
from diversevar_core.vae.vae import VAE
from diversevar_core.vae.vqvae import VQVAE, VQVAEConfig

PROMPT = 32  # tokens
TEXT = 2048  # width of flan-t5-xl
STD = 0.02  # of random weights


class Shape(NamedTuple):
    """Sizes of a transformer and its VAE."""

    model: InfinityConfig | VARConfig
    vae: AutoencoderConfig | VQVAEConfig


def infinity(
    width: int, depth: int, heads: int, bits: int, edits: bool = False, small: int = 1
) -> Shape:
    """An Infinity that reads flan-t5-xl; small: by how much to divide the VAE's widths."""
    patch = 2 if bits == 56 else 1  # Infinity-8B's tokens are patches of 2 x 2
    pixels = "1M" if width >= 2048 else "0.06M"
    sizes = width, depth, heads, bits, TEXT, 4 * width, 512, depth, True
    widths = tuple(channels // small for channels in (128, 256, 512, 512, 512)[: 6 - patch])
    vae = AutoencoderConfig(widths, len(widths) - 1, bits // patch**2, attention=False)
    return Shape(InfinityConfig(*sizes, sides=None, pixels=pixels, edits=edits), vae)


def var(depth: int) -> Shape:
    """A VAR of 256 pixels."""
    vae = AutoencoderConfig((160, 160, 320, 320, 640), 4, 32, attention=True)
    sizes = 64 * depth, depth, depth, 1000, 32, 4096, RELEASED_SIDES[10, 680]
    return Shape(VARConfig(*sizes, shared_ada=False), VQVAEConfig(vae, 4096, 4))


SHAPES = {
    "infinity-tiny": infinity(128, 4, 2, 32, small=4),
    "infinity-125m": infinity(768, 12, 8, 16),
    "infinity-2b": infinity(2048, 32, 16, 32),
    "infinity-8b": infinity(3584, 40, 28, 56),
    "varedit-125m": infinity(768, 12, 8, 16, edits=True),
    "varedit-8b": infinity(3584, 40, 28, 56, edits=True),
    "var-d16": var(16),
    "var-d30": var(30),
}

Sampled = tuple[list[Tensor], Tensor]
"""Tokens or bits of every map, and f_hat."""


class Bench(NamedTuple):
    """A model, its VAE, and how the model is sampled unless a measurement changes it."""

    name: str
    model: Family
    vae: VAE
    schedule: Schedule
    settings: Settings

    def steps(
        self, batch: int = 1, methods: Sequence[Method] = (), shared: bool = False, **settings
    ) -> Iterator[Step]:
        """Sample; settings: those that differ."""
        how = self.schedule, replace(self.settings, **settings), range(batch), shared, methods
        return sample(self.model, self.vae, condition_of(self, batch), *how)

    def sample(self, *arguments, **options) -> Sampled:
        """``steps``, to the end."""
        tokens = []
        for step in self.steps(*arguments, **options):
            tokens.append(step.tokens)
        return tokens, step.f_hat

    def decode(self, f_hat: Tensor) -> Tensor:
        """The images of a batch, one by one, as their number is limited by memory otherwise."""
        return torch.cat([self.vae.decode(image) for image in f_hat.split(1)])

    def needs(self, batch: int = 1, chain: Chain = PLAIN) -> tuple[int, float]:
        """Bytes of both models' weights, and what ComfyUI is asked for besides them."""
        weights = sum(p.nbytes for part in (self.model, self.vae) for p in part.parameters())
        sources = int(self.model.edits)
        return weights, room(self.model, self.schedule, self.settings, batch, chain, sources)


def build(name: str, device: str, dtype: torch.dtype) -> Bench:
    """A model of ``SHAPES`` and its VAE, with small random weights; norms are near identity."""
    shape = SHAPES[name]
    kinds = (Infinity, BSQ) if isinstance(shape.model, InfinityConfig) else (VAR, VQVAE)
    parts = [kinds[i](shape[i], device=device, dtype=dtype) for i in range(2)]
    torch.manual_seed(0)
    for part in parts:
        for weight, parameter in part.requires_grad_(False).eval().named_parameters():
            parameter.normal_(float("norm" in weight and weight.endswith("weight")), STD)
    return Bench(name, *parts, parts[0].schedule(), parts[0].defaults())


def condition_of(bench: Bench, batch: int) -> Condition:
    """Labels, or random text features and, for editing, a source (B, bits, h, w)."""
    model, last = bench.model, bench.schedule[-1]
    device, numbers = model.pos_start.device, torch.Generator().manual_seed(1)
    if model.reads is Labels:
        return Labels(torch.arange(batch, device=device))
    rows = 0.2 * torch.randn(batch, PROMPT, model.config.text, generator=numbers)
    source = torch.randn(batch, model.config.bits, last.h, last.w, generator=numbers)
    return Text(list(rows.to(device)), source=source.to(device) if model.edits else None)
