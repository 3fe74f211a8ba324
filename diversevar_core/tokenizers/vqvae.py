"""VAR's tokenizer: a multi-scale residual VQ-VAE.

VAR, arXiv 2404.02905, algorithms 1 and 2; ``models/quant.py`` and ``models/vqvae.py`` of
FoundationVision/VAR. A token is the index of a codebook row; the rows of all maps, upsampled,
smoothed by a small convolution and summed, are ``f_hat``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..schedule import Scale, Schedule
from .autoencoder import AutoencoderConfig, Decoder, Encoder
from .autoencoder import read_config as read_autoencoder_config

SMOOTHING = 0.5  # the share of the convolution in phi


@dataclass(frozen=True)
class VQVAEConfig:
    """The autoencoder's widths, the codebook's rows V, and how many phi convolutions there are."""

    autoencoder: AutoencoderConfig
    codebook: int
    phis: int


class Quantizer(nn.Module):
    """The codebook and the phi convolutions; parameter names are the official ones."""

    def __init__(self, config: VQVAEConfig, operations: ModuleType, **where):
        super().__init__()
        d = config.autoencoder.latent
        self.embedding = operations.Embedding(config.codebook, d, **where)
        self.quant_resi = nn.Module()
        self.quant_resi.qresi_ls = nn.ModuleList(
            operations.Conv2d(d, d, 3, padding=1, **where) for _ in range(config.phis)
        )

    def phi(self, h: Tensor, scale: Scale, schedule: Schedule) -> Tensor:
        """Half the upsampled map, half its convolution by the phi whose tick is nearest."""
        count = len(self.quant_resi.qresi_ls)
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        nearest = int(np.argmin(np.abs(ticks - scale.k / schedule[-1].k)))
        return (1 - SMOOTHING) * h + SMOOTHING * self.quant_resi.qresi_ls[nearest](h)


class VQVAE(nn.Module):
    """Pictures <-> maps of codebook indices <-> features."""

    def __init__(
        self,
        config: VQVAEConfig,
        operations: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype
        where = {"device": device, "dtype": dtype}
        d = config.autoencoder.latent
        self.encoder = Encoder(config.autoencoder, operations, **where)
        self.decoder = Decoder(config.autoencoder, operations, **where)
        self.quant_conv = operations.Conv2d(d, d, 3, padding=1, **where)
        self.post_quant_conv = operations.Conv2d(d, d, 3, padding=1, **where)
        # the codebook's arithmetic is float32 whatever the rest is
        self.quantize = Quantizer(config, operations, device=device, dtype=torch.float32)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> VQVAEConfig:
        """Read the configuration off the shapes of an official state dict."""
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

    def lift(self, rows: Tensor, scale: Scale, schedule: Schedule) -> Tensor:
        """Codebook rows (B, D, h, w) -> what they add to f_hat (B, D, H, W)."""
        last = schedule[-1]
        if scale.k < last.k:
            rows = F.interpolate(rows, size=(last.h, last.w), mode="bicubic")
        return self.quantize.phi(rows, scale, schedule)

    def accumulate(
        self, f_hat: Tensor | None, tokens: Tensor, scale: Scale, schedule: Schedule
    ) -> tuple[Tensor, Tensor | None]:
        """Add one map to the sum.

        f_hat: the sum of the coarser maps (B, D, H, W), None before the first.
        tokens: indices (B, h*w), or a mixture of codebook rows as weights (B, h*w, V).
        Returns the new sum and the next map's input features (B, h'*w', D), None at the end.
        """
        if tokens.is_floating_point():
            mixed = tokens @ self.quantize.embedding.weight.to(tokens)
            rows = rearrange(mixed, "b (h w) d -> b d h w", h=scale.h)
        else:
            rows = self.embed(tokens, scale)
        lifted = self.lift(rows, scale, schedule)
        f_hat = lifted if f_hat is None else f_hat + lifted
        if scale.k == schedule[-1].k:
            return f_hat, None
        after = schedule[scale.k + 1]
        features = F.interpolate(f_hat, size=(after.h, after.w), mode="area")
        return f_hat, rearrange(features, "b d h w -> b (h w) d")

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        """Widths of the encoder and decoder."""
        return self.config.autoencoder

    def features(self, image: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in -1..1 -> features before quantization (B, D, h, w), float32."""
        return self.quant_conv(self.encoder(image.to(self.dtype))).float()

    def encode(self, image: Tensor, schedule: Schedule) -> list[Tensor]:
        """Picture (B, 3, H, W) in -1..1 -> token maps, (B, h*w) each.

        Raises ValueError where the picture's size is not the schedule's.
        """
        last, stride = schedule[-1], self.config.autoencoder.stride
        if image.shape[-2:] != (last.h * stride, last.w * stride):
            raise ValueError(
                f"The picture is {image.shape[-1]} x {image.shape[-2]} pixels, but these scales "
                f"need {last.w * stride} x {last.h * stride}; resize it first."
            )
        return self.quantize_maps(self.features(image), schedule)

    def quantize_maps(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        """Encoder features (B, D, H, W) -> token maps, (B, h*w) each."""
        rest, maps = features, []
        for scale in schedule:
            z = rest
            if scale.k < schedule[-1].k:
                z = F.interpolate(rest, size=(scale.h, scale.w), mode="area")
            tokens = self.nearest(rearrange(z, "b d h w -> b (h w) d"))
            rest = rest - self.lift(self.embed(tokens, scale), scale, schedule)
            maps.append(tokens)
        return maps

    def nearest(self, z: Tensor) -> Tensor:
        """Features (B, n, D) -> index of the nearest codebook row (B, n)."""
        rows = self.quantize.embedding.weight.to(z)
        distance = z.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * z @ rows.T
        return distance.argmin(-1)

    def decode(self, f_hat: Tensor) -> Tensor:
        """Summed features (B, D, h, w) -> picture (B, 3, h * stride, w * stride), about -1..1."""
        return self.decoder(self.post_quant_conv(f_hat.to(self.dtype)))
