"""VAR's VAE: a multi-scale residual VQ-VAE.

VAR, arXiv 2404.02905, algorithms 1 and 2; ``models/quant.py`` and ``models/vqvae.py`` of
FoundationVision/VAR. A token is the index of a codebook row; the rows of all maps, upsampled,
smoothed by a small convolution and summed, are ``f_hat``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..resize import area
from ..schedule import Scale, Schedule
from ..tokens import TokenKind
from .autoencoder import AutoencoderConfig, Decoder, Encoder
from .autoencoder import read_config as read_autoencoder_config
from .vae import VAE

SMOOTHING = 0.5  # weight of the convolution in phi


@dataclass(frozen=True)
class VQVAEConfig:
    """The autoencoder's widths, the codebook's rows V, and how many phi convolutions there are."""

    autoencoder: AutoencoderConfig
    codebook: int
    phis: int


class Quantizer(nn.Module):
    """The codebook and the phi convolutions; parameter names are the official ones."""

    def __init__(self, config: VQVAEConfig, operations: ModuleType, **factory):
        super().__init__()
        d = config.autoencoder.latent
        self.embedding = operations.Embedding(config.codebook, d, **factory)
        self.quant_resi = nn.Module()
        self.quant_resi.qresi_ls = nn.ModuleList(
            operations.Conv2d(d, d, 3, padding=1, **factory) for _ in range(config.phis)
        )

    def phi(self, h: Tensor, scale: Scale) -> Tensor:
        """Mix an upsampled map with its convolution by the scale's phi (the one at its tick)."""
        count = len(self.quant_resi.qresi_ls)
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        nearest = int(np.argmin(np.abs(ticks - scale.progress)))
        return (1 - SMOOTHING) * h + SMOOTHING * self.quant_resi.qresi_ls[nearest](h)


class VQVAE(VAE):
    """Images <-> maps of codebook indices <-> features."""

    name = "VAR"

    def __init__(
        self,
        config: VQVAEConfig,
        operations: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype, self.stride = config, dtype, config.autoencoder.stride
        self.token_kind = TokenKind(config.codebook, config.autoencoder.latent)
        factory = {"device": device, "dtype": dtype}
        d = config.autoencoder.latent
        self.encoder = Encoder(config.autoencoder, operations, **factory)
        self.decoder = Decoder(config.autoencoder, operations, **factory)
        self.quant_conv = operations.Conv2d(d, d, 3, padding=1, **factory)
        self.post_quant_conv = operations.Conv2d(d, d, 3, padding=1, **factory)
        # the codebook always computes in float32
        self.quantize = Quantizer(config, operations, device=device, dtype=torch.float32)

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        return {"quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.weight"} <= set(keys)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> VQVAEConfig:
        phis = sum(key.startswith("quantize.quant_resi.qresi_ls.") for key in state_dict) // 2
        return VQVAEConfig(
            autoencoder=read_autoencoder_config(state_dict),
            codebook=state_dict["quantize.embedding.weight"].shape[0],
            phis=phis,
        )

    def embed(self, tokens: Tensor, scale: Scale) -> Tensor:
        """Token map (B, h*w) -> codebook rows (B, D, h, w)."""
        rows = self.quantize.embedding(tokens).float()
        return rearrange(rows, "b (h w) d -> b d h w", h=scale.h)

    def lift(self, rows: Tensor, scale: Scale) -> Tensor:
        """Codebook rows (B, D, h, w) -> what they add to f_hat (B, D, H, W)."""
        if not scale.last:
            rows = F.interpolate(rows, size=scale.full, mode="bicubic")
        return self.quantize.phi(rows, scale)

    def accumulate(
        self, f_hat: Tensor | None, tokens: Tensor, scale: Scale
    ) -> tuple[Tensor, Tensor | None]:
        if tokens.is_floating_point():  # weights (B, h*w, V) of a mixture of codebook rows
            mixed = tokens @ self.quantize.embedding.weight.to(tokens)
            rows = rearrange(mixed, "b (h w) d -> b d h w", h=scale.h)
        else:
            rows = self.embed(tokens, scale)
        lifted = self.lift(rows, scale)
        f_hat = lifted if f_hat is None else f_hat + lifted
        if scale.last:
            return f_hat, None
        return f_hat, rearrange(area(f_hat, *scale.next), "b d h w -> b (h w) d")

    def features(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image.to(self.dtype))).float()

    def quantize_maps(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        rest, maps = features, []
        for scale in schedule:
            z = rest if scale.last else area(rest, scale.h, scale.w)
            tokens = self.nearest(rearrange(z, "b d h w -> b (h w) d"))
            rest = rest - self.lift(self.embed(tokens, scale), scale)
            maps.append(tokens)
        return maps

    def nearest(self, z: Tensor) -> Tensor:
        """Features (B, n, D) -> index of the nearest codebook row (B, n)."""
        rows = self.quantize.embedding.weight.to(z)
        distance = z.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * z @ rows.T
        return distance.argmin(-1)

    def decode(self, f_hat: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(f_hat.to(self.dtype)))
