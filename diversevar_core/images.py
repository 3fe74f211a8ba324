"""Tensors -> image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from .quote import quote

FEATHER = 2  # pixels; an edge rises over twice as many and one
BAND = 256  # pixels of an image's side that are resized at once


def feathered(mask: Tensor) -> Tensor:
    """Soften the edge of a mask (B, 1, H, W) within it: where it is 0 it stays 0."""
    size = 2 * FEATHER + 1
    inner = -F.max_pool2d(-mask, size, stride=1, padding=FEATHER)
    return F.avg_pool2d(inner, size, stride=1, padding=FEATHER, count_include_pad=False)


def to_pil(image: Tensor) -> Image.Image:
    """One image (3, H, W), clamped to 0..1 -> 8-bit RGB, rounded."""
    pixels = rearrange(image, "c h w -> h w c").clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())


def sheet(images: Tensor, columns: int) -> Tensor:
    """Images (B, 3, H, W) in rows, what is left over white: (3, rows * H, columns * W)."""
    missing = -len(images) % columns
    filled = torch.cat((images, images.new_ones(missing, *images.shape[1:])))
    return rearrange(filled, "(r c) ch h w -> ch (r h) (c w)", c=columns)


def captioned_rows(rows: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Captions and the images (B, 3, H, W) below them, white where there is nothing.

    Returns one image (3, H', W') in 0..1.
    """
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
    """Dark text on white, (3, height, width) in 0..1."""
    strip = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=height * 0.6)
    ImageDraw.Draw(strip).text((height // 4, height // 2), text, "#222222", font, anchor="lm")
    return rearrange(torch.from_numpy(np.array(strip)).float() / 255, "h w c -> c h w")


def open_image(path: str | Path) -> Image.Image:
    """An image file in RGB, turned as its camera was held; ValueError if it is none.

    16-bit grey is read by its full range, as the host's Load Image does.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I"):
            grey = np.asarray(image).astype(np.float32) * (255 / 65535)
            image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"There is no image {quote(path)}; check the name.") from error
    except Exception as error:  # a broken file can bring out any of many
        raise ValueError(f"{quote(path)} is not an image that can be read.") from error


def read_image(path: str | Path, width: int, height: int) -> Tensor:
    """An image file, resized to (1, 3, height, width) in -1..1; ValueError if it is none."""
    return resized(open_image(path), width, height)


def resized(image: Image.Image, width: int, height: int) -> Tensor:
    """An image -> (1, 3, height, width) in -1..1."""
    pixels = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
    return rearrange(torch.from_numpy(pixels).float() / 127.5 - 1, "h w c -> 1 c h w")


def into_square(image: Image.Image, side: int) -> Tensor:
    """An image with white at its right or bottom up to a square -> (1, 3, side, side) in -1..1.

    As ``infer.py`` of HiDream-ai/VAREdit, to the bit, but never with the whole square in memory:
    Pillow resizes rows, then columns. ``out_of_square`` undoes it.
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
    """Squares (B, 3, S, S) in 0..1 -> the images in their upper left, (B, 3, height, width)."""
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
        cropped.append(torch.from_numpy(np.array(image)))
    return rearrange(torch.stack(cropped).float() / 255, "b h w c -> b c h w")
