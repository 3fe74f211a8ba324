"""Infinity's tokenizer: binary spherical quantization over a pyramid of token maps.

Infinity, arXiv 2412.04431, section 3.2; ``infinity/models/bsq_vae`` of FoundationVision/Infinity.
A token is a vector of bits; bit b of a d-channel feature stands for ``(2 b - 1) / sqrt(d)``. The
codes of all maps, upsampled and summed, are what the decoder sees (``f_hat``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..schedule import Scale, Schedule
from .autoencoder import AutoencoderConfig, Decoder, Encoder, read_config

# the layer inside a wrapper, as in conv1.conv.weight; downsample.conv.weight has none left to strip
WRAPPED = re.compile(r"(?<!sample)\.(?:conv|norm)\.(weight|bias)$")


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Infinity's tokenizer keys -> this module's: the wrappers' inner names go, extras are dropped.

    Released files say ``conv1.conv.weight`` or ``conv1.weight``, ``norm1.norm.weight`` or
    ``norm1.weight``; discriminators and losses may be along.
    """
    return {
        WRAPPED.sub(r".\1", key): tensor
        for key, tensor in state_dict.items()
        if key.startswith(("encoder.", "decoder."))
    }


def resize(x: Tensor, h: int, w: int) -> Tensor:
    """Trilinear resize of (B, d, h0, w0) maps, which for one frame is bilinear."""
    if x.shape[-2:] == (h, w):
        return x
    return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)


class BSQ(nn.Module):
    """Pictures <-> maps of bits <-> features."""

    def __init__(
        self,
        config: AutoencoderConfig,
        operations: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.encoder = Encoder(config, operations, device=device, dtype=dtype)
        self.decoder = Decoder(config, operations, device=device, dtype=dtype)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> AutoencoderConfig:
        """Read the configuration off a renamed state dict."""
        return read_config(state_dict)

    def codes(self, bits: Tensor, scale: Scale) -> Tensor:
        """Bits (B, h*w, d or 4d) of a map -> codes (B, d, h, w) or, patchified, (B, d, 2h, 2w)."""
        d = self.config.latent
        maps = rearrange(bits, "b (h w) c -> b c h w", h=scale.h, w=scale.w)
        if bits.shape[-1] == 4 * d:
            maps = F.pixel_shuffle(maps, 2)
        return (2 * maps.float() - 1) / d**0.5

    def accumulate(
        self, f_hat: Tensor | None, bits: Tensor, scale: Scale, schedule: Schedule
    ) -> tuple[Tensor, Tensor | None]:
        """Add one map to the sum.

        f_hat: the sum of the coarser maps (B, d, H, W), None before the first.
        bits: (B, h*w, d or 4d), 0 or 1.
        Returns the new sum and the next map's input features (B, h'*w', d or 4d), None at the end.
        """
        patch = 2 if bits.shape[-1] == 4 * self.config.latent else 1
        last = schedule[-1]
        codes = resize(self.codes(bits, scale), patch * last.h, patch * last.w)
        f_hat = codes if f_hat is None else f_hat + codes
        if scale.k == last.k:
            return f_hat, None
        after = schedule[scale.k + 1]
        features = resize(f_hat, patch * after.h, patch * after.w)
        return f_hat, patchify(features, patch)

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        """Widths of the encoder and decoder."""
        return self.config

    def features(self, image: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in -1..1 -> features before quantization (B, d, h, w), float32."""
        return self.encoder(image.to(self.dtype)).float()

    def encode(self, image: Tensor, schedule: Schedule, patch: int = 1) -> list[Tensor]:
        """Picture (B, 3, H, W) in -1..1 -> bits (B, h*w, d * patch**2) of every map.

        patch: 2 where the transformer's tokens are 2x2 patches of this tokenizer's (Infinity-8B).
        Raises ValueError where the picture's size is not the schedule's.
        """
        last, stride = schedule[-1], self.config.stride * patch
        if image.shape[-2:] != (last.h * stride, last.w * stride):
            raise ValueError(
                f"The picture is {image.shape[-1]} x {image.shape[-2]} pixels, but these scales "
                f"need {last.w * stride} x {last.h * stride}; resize it first."
            )
        return self.quantize_maps(self.features(image), schedule, patch)

    def quantize_maps(self, features: Tensor, schedule: Schedule, patch: int = 1) -> list[Tensor]:
        """Encoder features (B, d, H, W) -> bits (B, h*w, d * patch**2) of every map."""
        rest, maps = features, []
        for scale in schedule:
            z = rest
            if scale.k < schedule[-1].k:
                z = F.interpolate(rest, size=(patch * scale.h, patch * scale.w), mode="area")
            bits = patchify((z > 0).long(), patch)
            rest = rest - resize(self.codes(bits, scale), *features.shape[-2:])
            maps.append(bits)
        return maps

    def decode(self, f_hat: Tensor) -> Tensor:
        """The summed codes (B, d, h, w) -> picture (B, 3, h * stride, w * stride), about -1..1."""
        return self.decoder(f_hat.to(self.dtype))


def patchify(maps: Tensor, patch: int) -> Tensor:
    """(B, d, patch*h, patch*w) -> tokens (B, h*w, d * patch**2)."""
    return rearrange(F.pixel_unshuffle(maps, patch), "b c h w -> b (h w) c")
