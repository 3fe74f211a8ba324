"""Images as tensors and as PIL images: files, resizing, grids, captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError, quote

FEATHER = 2  # pixels; a softened edge is 2 * FEATHER + 1 wide
BAND = 256  # rows or columns that are resized at once, to save memory
CELL = 384  # pixels along the longer side of a contact sheet's cells
COLUMNS = 8  # of a contact sheet; longer rows go on below
GAP = 6  # pixels around each image of a contact sheet
# Chinese and Japanese, which Pillow's own font lacks: on Linux (twice), Windows and macOS
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "Hiragino Sans GB.ttc")


def feathered(mask: Tensor) -> Tensor:
    """Soften the edge of a mask (B, 1, H, W) inwards: pixels that are 0 stay 0."""
    size = 2 * FEATHER + 1
    inner = -F.max_pool2d(-mask, size, stride=1, padding=FEATHER)
    return F.avg_pool2d(inner, size, stride=1, padding=FEATHER, count_include_pad=False)


def to_pil(image: Tensor) -> Image.Image:
    """One image (3, H, W), clamped to 0..1 -> 8-bit RGB, rounded."""
    pixels = rearrange(image, "c h w -> h w c").clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """An RGB image -> (3, H, W) in 0..1."""
    return rearrange(torch.from_numpy(np.array(image)).float() / 255, "h w c -> c h w")


def sheet(images: Tensor, columns: int) -> Tensor:
    """Images (B, 3, H, W) -> a grid of them, (3, rows * H, columns * W); empty cells are white."""
    missing = -len(images) % columns
    filled = torch.cat((images, images.new_ones(missing, *images.shape[1:])))
    return rearrange(filled, "(r c) ch h w -> ch (r h) (c w)", c=columns)


def captioned_rows(rows: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Rows of a caption and images (B, 3, H, W) -> one image (3, H', W') in 0..1, on white."""
    height = max(images.shape[2] for _, images in rows)
    strip = max(height // 6, 20)
    drawn = [
        torch.cat(
            (caption(text, strip, len(images) * images.shape[3]), sheet(images, len(images))), 1
        )
        for text, images in rows
    ]
    width = max(row.shape[2] for row in drawn)
    return torch.cat([F.pad(row, (0, width - row.shape[2]), value=1.0) for row in drawn], dim=1)


def caption(text: str, height: int, width: int) -> Tensor:
    """Dark text on white, in as many lines as it needs: (3, lines * height, width) in 0..1."""
    font = font_of(text, height * 0.6)
    lines, letters = [text] if text else [], len(text)
    while any(font.getlength(line) > width - height / 2 for line in lines) and letters > 1:
        letters -= 1
        lines = textwrap.wrap(text, letters)
    strip = Image.new("RGB", (width, len(lines) * height), "white")
    for i, line in enumerate(lines):
        place = (height // 4, i * height + height // 2)
        ImageDraw.Draw(strip).text(place, line, "#222222", font, anchor="lm")
    return from_pil(strip)


def font_of(text: str, size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or for other letters than its own one of the system's, if there is one."""
    for name in () if text.isascii() else FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


class Row(NamedTuple):
    """A row of a contact sheet."""

    prompt: str  # "" if it is not known
    images: Sequence[Tensor]  # (3, H, W) each, in 0..1
    labels: Sequence[str]  # as many as images, or none


def contact_sheet(rows: Sequence[Row]) -> Tensor:
    """Rows of images, with prompts above and labels below -> one image (3, H, W) in 0..1, on white.

    Rows and images are numbered from 1. All cells have the shape of the largest image.
    """
    height, width = (max(i.shape[axis] for row in rows for i in row.images) for axis in (1, 2))
    scale = CELL / max(height, width)
    cell = max(round(width * scale), 1), max(round(height * scale), 1)
    lines = []
    for number, (prompt, images, labels) in enumerate(rows, 1):
        names = [f"{i + 1}: {labels[i]}" if labels else f"{i + 1}" for i in range(len(images))]
        cells = labelled(images, names, cell)
        shown = f"{number}: {prompt}" if len(rows) > 1 else prompt
        for first in range(0, len(cells), COLUMNS):
            lines.append(("" if first else shown, cells[first : first + COLUMNS]))
    return captioned_rows(lines)


def labelled(images: Sequence[Tensor], labels: Sequence[str], cell: tuple[int, int]) -> Tensor:
    """Fit images (3, H, W) into cells of a width and height, with labels below: (B, 3, H', W')."""
    fitted = [ImageOps.pad(to_pil(image), cell, color="white") for image in images]
    framed = [from_pil(ImageOps.expand(image, GAP, "white")) for image in fitted]
    below = [caption(label, CELL // 8, framed[0].shape[2]) for label in labels]
    deepest = max(strip.shape[1] for strip in below)
    below = [F.pad(strip, (0, 0, 0, deepest - strip.shape[1]), value=1) for strip in below]
    return torch.cat((torch.stack(framed), torch.stack(below)), dim=2)


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB, rotated as its EXIF data says.

    16-bit grey is scaled from its full range, as in ComfyUI's Load Image. Raises UserError if
    the file is missing or not an image.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I"):
            grey = np.asarray(image).astype(np.float32) * (255 / 65535)
            image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:  # a broken file can raise anything
        raise UserError(f"{quote(path)} is missing, or not an image that can be read.") from error


def resized(image: Image.Image, width: int, height: int) -> Tensor:
    """An image -> (1, 3, height, width) in -1..1."""
    pixels = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    return rearrange(torch.from_numpy(pixels).float() / 127.5 - 1, "h w c -> 1 c h w")


def into_square(image: Image.Image, side: int) -> Tensor:
    """Pad an image with white, right or below, to a square: (1, 3, side, side) in -1..1.

    Bit for bit as ``infer.py`` of HiDream-ai/VAREdit, which resizes the padded square; here the
    square is never whole in memory, as Pillow resizes rows first and columns after them.
    ``out_of_square`` is the inverse.
    """
    width, height = image.size
    longer = max(width, height)
    narrow = Image.new("RGB", (side, longer), "white")
    for top in range(0, height, BAND):
        rows = Image.new("RGB", (longer, min(BAND, height - top)), "white")
        rows.paste(image.crop((0, top, width, top + rows.height)))
        narrow.paste(rows.resize((side, rows.height), Image.Resampling.LANCZOS), (0, top))
    return resized(narrow, side, side)


def out_of_square(images: Tensor, width: int, height: int) -> Tensor:
    """Remove the padding of ``into_square``: (B, 3, S, S) in 0..1 -> (B, 3, height, width)."""
    longer, side = max(width, height), images.shape[-1]
    cropped = []
    for square in images:
        wide = to_pil(square).resize((longer, side), Image.Resampling.LANCZOS)
        image = Image.new("RGB", (width, height))
        for left in range(0, width, BAND):
            right = min(left + BAND, width)
            columns = wide.crop((left, 0, right, side))
            columns = columns.resize((right - left, longer), Image.Resampling.LANCZOS)
            image.paste(columns.crop((0, 0, right - left, height)), (left, 0))
        cropped.append(from_pil(image))
    return torch.stack(cropped)
