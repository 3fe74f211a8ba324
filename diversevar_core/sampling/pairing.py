"""What depends on both the transformer and the tokenizer: whether they fit, and image sizes."""

from __future__ import annotations

import math

from ..models.family import Family
from ..schedule import Schedule
from ..vae.vae import Tokenizer


def check_pair(model: Family, tokenizer: Tokenizer) -> None:
    """Raise ValueError where the tokenizer is not the one that the transformer was trained with."""
    wants, has = model.token_kind, tokenizer.token_kind
    sizes = (has.channels, 4 * has.channels) if has.choices == 2 else (has.channels,)
    if wants.choices != has.choices or wants.channels not in sizes:
        quarter = " (or a quarter of them)" if wants.choices == 2 else ""
        raise ValueError(
            f"This transformer needs {model.name}'s tokenizer with {wants}{quarter}, but was given "
            f"{tokenizer.name}'s with {has}; load the tokenizer that it was trained with."
        )


def patch_of(model: Family, tokenizer: Tokenizer) -> int:
    """How many of the tokenizer's positions one token covers along a side: 1; Infinity-8B: 2."""
    return math.isqrt(model.token_kind.channels // tokenizer.token_kind.channels)


def image_size(model: Family, tokenizer: Tokenizer, schedule: Schedule) -> tuple[int, int]:
    """Height and width of the images in pixels."""
    h, w = schedule[-1].full
    stride = patch_of(model, tokenizer) * tokenizer.stride
    return h * stride, w * stride


def schedule_of_size(model: Family, h: float, w: float) -> Schedule:
    """The model's schedule whose last map is h x w tokens; ValueError where there is none."""
    for aspect in model.aspects:
        for pixels in model.budgets:
            schedule = model.schedule(aspect, pixels)
            if schedule[-1].full == (h, w):
                return schedule
    raise ValueError(
        f"The image is {w:g} x {h:g} tokens (width x height), and this model makes none of that "
        "size; put it through VAR Encode with this model."
    )
