"""A transformer and its tokenizer: do they fit, and what is a picture to the two of them."""

from __future__ import annotations

from torch import Tensor

from .families.infinity import Infinity
from .families.var import VAR
from .schedule import Schedule
from .tokenizers.bsq import BSQ
from .tokenizers.vqvae import VQVAE


def check_pair(model: VAR | Infinity, tokenizer: VQVAE | BSQ) -> None:
    """Raise ValueError where the tokenizer is not the one that the transformer was trained with."""
    if isinstance(model, VAR):
        wants = f"VAR's, with {model.config.codebook} codebook rows of {model.config.features}"
        fits = isinstance(tokenizer, VQVAE) and (
            (model.config.codebook, model.config.features)
            == (tokenizer.config.codebook, tokenizer.autoencoder_config.latent)
        )
    else:
        wants = f"Infinity's, with {model.config.bits} bits a token (or a quarter of them)"
        fits = isinstance(tokenizer, BSQ) and (
            model.config.bits
            in (tokenizer.autoencoder_config.latent, 4 * tokenizer.autoencoder_config.latent)
        )
    if not fits:
        has = (
            f"VAR's, with {tokenizer.config.codebook} rows of {tokenizer.autoencoder_config.latent}"
            if isinstance(tokenizer, VQVAE)
            else f"Infinity's, with {tokenizer.autoencoder_config.latent} bits"
        )
        raise ValueError(
            f"This transformer needs the tokenizer {wants}, but was given {has}; load the other."
        )


def patch_of(model: VAR | Infinity, tokenizer: VQVAE | BSQ) -> int:
    """Along a side, how many of the tokenizer's positions make one token: 2 for Infinity-8B."""
    four = isinstance(model, Infinity) and model.config.bits == 4 * tokenizer.config.latent
    return 2 if four else 1


def picture_size(
    model: VAR | Infinity, tokenizer: VQVAE | BSQ, schedule: Schedule
) -> tuple[int, int]:
    """Height and width in pixels."""
    stride = patch_of(model, tokenizer) * tokenizer.autoencoder_config.stride
    return schedule[-1].h * stride, schedule[-1].w * stride


def token_maps(
    model: VAR | Infinity, tokenizer: VQVAE | BSQ, features: Tensor, schedule: Schedule
) -> list[Tensor]:
    """Encoder features (B, D, H, W) -> the tokens (B, n) or bits (B, n, bits) of every map."""
    if isinstance(tokenizer, VQVAE):
        return tokenizer.quantize_maps(features, schedule)
    return tokenizer.quantize_maps(features, schedule, patch_of(model, tokenizer))
