"""A plot of a calibration: diversity against the model's own judgement of alignment."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..images import from_pil
from .calibrate import Measured, interval

SIZE, LEFT, TOP, BOTTOM, KEY = (900, 560), 80, 30, 70, 300  # pixels; KEY: width of the legend
INK, GRID, CHOSEN, OTHER = "#222222", "#e4e6e8", "#d9541e", "#3b6ea5"


def front_plot(measured: Sequence[Measured], chosen: Measured) -> Tensor:
    """A numbered point with 95 % intervals for each preset, the chosen one orange.

    Alignment is relative to the first preset's on the same prompt, as prompts differ more than
    presets. Returns an image (3, H, W) in 0..1.
    """
    aligned = [
        [own - first for own, first in zip(m.alignment, measured[0].alignment, strict=True)]
        for m in measured
    ]
    canvas = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    right, low = SIZE[0] - KEY, SIZE[1] - BOTTOM
    x = Axis([interval(values) for values in aligned], LEFT, right)
    y = Axis([interval(m.diversity) for m in measured], low, TOP)
    draw.rectangle((LEFT, TOP, right, low), outline=GRID)
    for share in (0.0, 0.5, 1.0):
        across, up = LEFT + share * (right - LEFT), low + share * (TOP - low)
        draw.text((across, low + 8), f"{x.value(across):.0f}", INK, font, anchor="mt")
        draw.text((LEFT - 8, up), f"{y.value(up):.3f}", INK, font, anchor="rm")
    words = "follows the prompt: the model's own judgement, nats an image against 1"
    draw.text(((LEFT + right) / 2, low + 36), words, INK, font, anchor="mt")
    draw.text((LEFT, 8), "images differ: mean distance", INK, font)
    for i, (m, values) in enumerate(zip(measured, aligned, strict=True)):
        colour = CHOSEN if m == chosen else OTHER
        across, up = x(fmean(values)), y(fmean(m.diversity))
        draw.line([(x(end), up) for end in interval(values)], colour, 1)
        draw.line([(across, y(end)) for end in interval(m.diversity)], colour, 1)
        draw.ellipse((across - 5, up - 5, across + 5, up + 5), fill=colour)
        draw.text((across + 7, up - 3), str(i + 1), colour, font, anchor="lb")
        draw.text((right + 20, TOP + 24 * i), f"{i + 1}  {m.preset}", colour, font)
    return from_pil(canvas)


class Axis:
    """A linear map of values to pixels that fits all intervals between two edges."""

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
