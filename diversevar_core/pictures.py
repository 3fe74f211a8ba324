"""Tensors -> picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """One picture (3, H, W) in 0..1 -> 8-bit RGB, rounded."""
    pixels = rearrange(image, "c h w -> h w c").mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())


def sheet(images: Tensor, columns: int) -> Tensor:
    """Pictures (B, 3, H, W) in rows, what is left over white: (3, rows * H, columns * W)."""
    missing = -len(images) % columns
    filled = torch.cat((images, images.new_ones(missing, *images.shape[1:])))
    return rearrange(filled, "(r c) ch h w -> ch (r h) (c w)", c=columns)


def read_picture(path: str | Path, width: int, height: int) -> Tensor:
    """A picture file, resized to (1, 3, height, width) in -1..1; ValueError if it is none."""
    try:
        opened = Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is not a picture ({error}).") from error
    resized = opened.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized)).float() / 127.5 - 1
    return rearrange(pixels, "h w c -> 1 c h w")
