"""What depends on both the transformer and the VAE: whether they fit, and image sizes."""

from __future__ import annotations

import math

from ..errors import UserError
from ..models.family import Family
from ..schedule import Schedule
from ..vae.vae import VAE


def check_pair(model: Family, vae: VAE) -> None:
    """Raise UserError if the VAE is not the one that the transformer was trained with."""
    wants, has = model.token_kind, vae.token_kind
    sizes = (has.channels, 4 * has.channels) if has.choices == 2 else (has.channels,)
    if wants.choices != has.choices or wants.channels not in sizes:
        quarter = " (or a quarter of them)" if wants.choices == 2 else ""
        raise UserError(
            f"This transformer needs {model.name}'s VAE with {wants}{quarter}, but was given "
            f"{vae.name}'s with {has}; load the VAE that it was trained with."
        )


def patch_of(model: Family, vae: VAE) -> int:
    """How many of the VAE's positions one token covers along a side: 1; Infinity-8B: 2."""
    return math.isqrt(model.token_kind.channels // vae.token_kind.channels)


def image_size(model: Family, vae: VAE, schedule: Schedule) -> tuple[int, int]:
    """Height and width of the images in pixels."""
    h, w = schedule[-1].full
    stride = patch_of(model, vae) * vae.stride
    return h * stride, w * stride


def schedule_of_size(model: Family, h: float, w: float) -> Schedule:
    """The model's schedule whose last map is h x w tokens; UserError if there is none."""
    for aspect in model.aspects:
        for pixels in model.budgets:
            schedule = model.schedule(aspect, pixels)
            if schedule[-1].full == (h, w):
                return schedule
    raise UserError(
        f"The image is {w:g} x {h:g} tokens (width x height), and this model makes none of that "
        "size; crop and resize it to one that it makes."
    )
