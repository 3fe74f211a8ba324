"""An image of a calibration: diversity against what the model says of itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .calibrate import Measured, interval, mean

SIZE, LEFT, TOP, BOTTOM, KEY = (900, 560), 80, 30, 70, 300  # pixels; the key lies at the right
INK, GRID, CHOSEN, OTHER = "#222222", "#e4e6e8", "#d9541e", "#3b6ea5"


def front_plot(measured: Sequence[Measured], chosen: Measured | None = None) -> Tensor:
    """A numbered point for each preset with its 95 % intervals, the chosen one orange.

    (3, H, W) in 0..1.

    Alignment is shown against the first one's, prompt by prompt: prompts differ more than
    presets.
    """
    aligned = [
        [own - first for own, first in zip(one.alignment, measured[0].alignment, strict=True)]
        for one in measured
    ]
    canvas = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    right, low = SIZE[0] - KEY, SIZE[1] - BOTTOM
    x = Axis([interval(values) for values in aligned], LEFT, right)
    y = Axis([interval(one.diversity) for one in measured], low, TOP)
    draw.rectangle((LEFT, TOP, right, low), outline=GRID)
    for share in (0.0, 0.5, 1.0):
        across, up = LEFT + share * (right - LEFT), low + share * (TOP - low)
        draw.text((across, low + 8), f"{x.value(across):.0f}", INK, font, anchor="mt")
        draw.text((LEFT - 8, up), f"{y.value(up):.3f}", INK, font, anchor="rm")
    words = "follows the prompt: the model's own judgement, nats an image against 1"
    draw.text(((LEFT + right) / 2, low + 36), words, INK, font, anchor="mt")
    draw.text((LEFT, 8), "images differ: mean distance", INK, font)
    for i, (one, values) in enumerate(zip(measured, aligned, strict=True)):
        colour = CHOSEN if one == chosen else OTHER
        across, up = x(mean(values)), y(mean(one.diversity))
        for ends, horizontal in (
            (interval(values), True),
            (interval(one.diversity), False),
        ):
            begin, end = ((x(e), up) if horizontal else (across, y(e)) for e in ends)
            draw.line((*begin, *end), colour, 1)
        draw.ellipse((across - 5, up - 5, across + 5, up + 5), fill=colour)
        draw.text((across + 7, up - 3), str(i + 1), colour, font, anchor="lb")
        draw.text((right + 20, TOP + 24 * i), f"{i + 1}  {one.preset}", colour, font)
    return rearrange(torch.from_numpy(np.array(canvas)).float() / 255, "h w c -> c h w")


class Axis:
    """Values -> pixels, so that all intervals fit between two edges."""

    def __init__(self, intervals: Sequence[tuple[float, float]], begin: float, end: float):
        low, high = min(a for a, _ in intervals), max(b for _, b in intervals)
        room = 0.08 * (high - low) or 1.0
        self.low, self.high = low - room, high + room
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def value(self, pixel: float) -> float:
        """The value at a pixel."""
        return self.low + (pixel - self.begin) / (self.end - self.begin) * (self.high - self.low)
