"""A plot of what a diversity method does to singular values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..images import from_pil
from .spectra import MODEL, Place

SIDES = range(2, 17)  # of the maps in the plot: one token has one value, large maps take too long
COLUMNS = 6
PANEL, MARGIN, HEAD, GAP = (220, 120), 110, 64, 12  # pixels
DECADES = 4  # below the largest value
BEFORE, AFTER, INK, FRAME = "#8a8f98", "#d9541e", "#222222", "#d5d8dc"


def spectrum_plot(values: Mapping[Place, tuple[Tensor, Tensor]]) -> Tensor:
    """A panel per map and block with singular values before and after a method.

    values: of ``spectra.Spectra``. Both axes are logarithmic. Returns an image (3, H, W) in 0..1.
    """
    rows = sorted({(p.side, not p.reads) for p in values})
    blocks = sorted({p.block for p in values} - {MODEL})
    columns = [MODEL, *blocks]
    wide, high = PANEL[0] + GAP, PANEL[1] + GAP
    size = (MARGIN + wide * len(columns), HEAD + high * len(rows) + GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    legend(draw, font)
    for c, block in enumerate(columns):
        name = "transformer" if block == MODEL else f"block {block + 1}"
        draw.text((MARGIN + c * wide + PANEL[0] / 2, HEAD - 6), name, INK, font, anchor="ms")
    for r, (side, written) in enumerate(rows):
        top = HEAD + r * high
        words = f"side {side}\n{'written' if written else 'read'}"
        draw.multiline_text((GAP, top + PANEL[1] / 2), words, INK, font, anchor="lm")
        for c, block in enumerate(columns):
            panel(draw, MARGIN + c * wide, top, *values[Place(side, block, not written)])
    return from_pil(canvas)


def shown_blocks(depth: int) -> list[int]:
    """The blocks that get a column: evenly spaced, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, depth - 1, min(depth, COLUMNS - 1))})


def legend(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
    """Draw the legend."""
    for x, colour, words in ((MARGIN, BEFORE, "before"), (MARGIN + 110, AFTER, "after")):
        draw.line((x, 22, x + 24, 22), colour, 3)
        draw.text((x + 32, 22), words, INK, font, anchor="lm")
    words = "singular values, largest first; both axes logarithmic"
    draw.text((MARGIN + 210, 22), words, INK, font, anchor="lm")


def panel(draw: ImageDraw.ImageDraw, left: float, top: float, *spectra: Tensor) -> None:
    """Draw one panel; spectra: singular values (n,) before and after, descending."""
    wide, high = PANEL
    draw.rectangle((left, top, left + wide, top + high), outline=FRAME)
    largest = spectra[0][0].clamp(min=1e-12)
    for values, colour in zip(spectra, (BEFORE, AFTER), strict=True):
        places = torch.arange(1, len(values) + 1).log() / np.log(max(len(values), 2))
        depth = (-(values / largest).clamp(min=1e-12).log10() / DECADES + 0.2).clamp(0, 1)
        points = torch.stack((left + places * wide, top + depth * high), dim=1)
        draw.line([tuple(point) for point in points.tolist()], colour, 3)
