"""Inputs that several nodes have, each with words of its own, and how they are read."""

import torch
from comfy_api.latest import io


def seed(tooltip: str) -> io.Int.Input:
    """The seed of the first picture."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip
    )


def batch_size(tooltip: str) -> io.Int.Input:
    """Pictures at once."""
    return io.Int.Input("batch_size", default=1, min=1, max=64, tooltip=tooltip)


def cfg(tooltip: str) -> io.Float.Input:
    """Guidance; 0 is the model's own."""
    return io.Float.Input("cfg", default=0.0, min=0.0, max=30.0, step=0.1, tooltip=tooltip)


def tau(tooltip: str) -> io.Float.Input:
    """Temperature; 0 is the model's own."""
    return io.Float.Input("tau", default=0.0, min=0.0, max=5.0, step=0.05, tooltip=tooltip)


def guide_from(default: int, tooltip: str) -> io.Int.Input:
    """The side of the first guided map; 0 guides all."""
    return io.Int.Input("guide_from", default=default, min=0, max=128, tooltip=tooltip)


def guide_to() -> io.Int.Input:
    """The side of the last guided map; 0 guides to the last."""
    return io.Int.Input(
        "guide_to",
        optional=True,
        default=0,
        min=0,
        max=128,
        tooltip="Follow the prompt with cfg up to the token map of this side only. The larger "
        "maps, fine detail and most of the time, then take half as long. At a million pixels 24 "
        "saves two fifths. 0 is the model as published.",
        advanced=True,
    )


def exact_batch() -> io.Boolean.Input:
    """Whether the pictures of a batch are computed one by one."""
    return io.Boolean.Input(
        "exact_batch",
        default=False,
        optional=True,
        tooltip="Compute the pictures of a batch one by one, so that each is bit for bit what its "
        "seed gives alone. Together they are faster, and once in a while a token differs.",
        advanced=True,
    )


def top_k(tooltip: str) -> io.Int.Input:
    """How many tokens to draw from; 0 is the model's own."""
    return io.Int.Input("top_k", default=0, min=0, max=2**16, tooltip=tooltip, advanced=True)


def top_p(tooltip: str) -> io.Float.Input:
    """Probability to draw from; 0 is the model's own."""
    return io.Float.Input(
        "top_p", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=tooltip, advanced=True
    )


def rgb(socket: str, images: torch.Tensor) -> torch.Tensor:
    """The host's pictures (B, H, W, C) in colour, without transparency, as (B, 3, H, W)."""
    channels = images.shape[-1]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"{socket} has {channels} channels, and a picture has 1 (grey), 3 (colour) or 4 (with "
            "transparency); connect a picture."
        )
    return images[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)
