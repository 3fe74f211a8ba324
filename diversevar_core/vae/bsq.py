"""Infinity's VAE: binary spherical quantization over a pyramid of token maps.

Infinity, arXiv 2412.04431, section 3.2; ``infinity/models/bsq_vae`` of FoundationVision/Infinity.
A token is a vector of bits; bit b of a d-channel feature stands for ``(2 b - 1) / sqrt(d)``. The
codes of all maps, upsampled and summed, are the decoder's input (``f_hat``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..resize import area
from ..schedule import Scale, Schedule
from ..tokens import TokenKind
from .autoencoder import AutoencoderConfig, Decoder, Encoder, read_config
from .vae import VAE

# the inner name of a wrapped layer, as in conv1.conv.weight (downsample.conv.weight is not wrapped)
WRAPPED = re.compile(r"(?<!sample)\.(?:conv|norm)\.(weight|bias)$")


def resize(x: Tensor, h: int, w: int) -> Tensor:
    """Bilinear resize of (B, d, h0, w0) maps: the original's trilinear one for a single frame."""
    if x.shape[-2:] == (h, w):
        return x
    return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)


class BSQ(VAE):
    """Images <-> maps of bits <-> features."""

    name = "Infinity"

    def __init__(
        self,
        config: AutoencoderConfig,
        operations: ModuleType = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype, self.stride = config, dtype, config.stride
        self.token_kind = TokenKind(2, config.latent)
        self.encoder = Encoder(config, operations, device=device, dtype=dtype)
        self.decoder = Decoder(config, operations, device=device, dtype=dtype)

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether these are an Infinity VAE's tensors, not a diffusion model's VAE."""
        entry = {"decoder.conv_in.conv.weight", "decoder.conv_in.weight"} & set(keys)
        other = ("quant_conv.", "quantize.embedding.")
        return bool(entry) and not any(key.startswith(other) or ".attn_1." in key for key in keys)

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> this module's, without the inner names of wrapped layers.

        Released files have ``conv1.conv.weight`` or ``conv1.weight``, ``norm1.norm.weight`` or
        ``norm1.weight``. Other tensors, such as a discriminator's, are dropped.
        """
        return {
            WRAPPED.sub(r".\1", key): tensor
            for key, tensor in state_dict.items()
            if key.startswith(("encoder.", "decoder."))
        }

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> AutoencoderConfig:
        return read_config(state_dict)

    def codes(self, bits: Tensor, scale: Scale) -> Tensor:
        """Bits (B, h*w, d * p**2) of a map of p x p patches -> codes (B, d, p*h, p*w)."""
        d = self.config.latent
        maps = rearrange(bits, "b (h w) c -> b c h w", h=scale.h, w=scale.w)
        maps = F.pixel_shuffle(maps, math.isqrt(bits.shape[-1] // d))
        return (2 * maps.float() - 1) / d**0.5

    def accumulate(
        self, f_hat: Tensor | None, bits: Tensor, scale: Scale
    ) -> tuple[Tensor, Tensor | None]:
        codes = self.codes(bits, scale)
        patch = codes.shape[-1] // scale.w
        codes = resize(codes, *(patch * size for size in scale.full))
        f_hat = codes if f_hat is None else f_hat + codes
        if scale.last:
            return f_hat, None
        return f_hat, patchify(resize(f_hat, *(patch * size for size in scale.next)), patch)

    def features(self, image: Tensor) -> Tensor:
        return self.encoder(image.to(self.dtype)).float()

    def quantize_maps(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        patch = features.shape[-1] // schedule[-1].w
        rest, maps = features, []
        for scale in schedule:
            z = rest if scale.last else area(rest, patch * scale.h, patch * scale.w)
            bits = patchify((z > 0).long(), patch)
            rest = rest - resize(self.codes(bits, scale), *features.shape[-2:])
            maps.append(bits)
        return maps

    def decode(self, f_hat: Tensor) -> Tensor:
        return self.decoder(f_hat.to(self.dtype))


def patchify(maps: Tensor, patch: int) -> Tensor:
    """(B, d, patch*h, patch*w) -> tokens (B, h*w, d * patch**2)."""
    return rearrange(F.pixel_unshuffle(maps, patch), "b c h w -> b (h w) c")
