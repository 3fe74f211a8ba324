"""Write results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..convert import unwritable
from ..errors import UserError
from ..images import to_pil

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def place(path: Path, *suffixes: str) -> Path:
    """Prepare an output path: add the first suffix if it has none of them, and create its folder.

    Raises UserError if the file cannot be written; call it before the long work.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError("it is not a file; choose another path")
        if path.suffix.lower() not in suffixes:
            path = path.with_name(path.name + suffixes[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    return path


def save_image(path: Path, image: Tensor, seeds: Sequence[int] = ()) -> None:
    """Write an image (3, H, W) in 0..1, its seeds in its metadata, and print the path."""
    about = PngInfo()
    if seeds:
        about.add_text("seeds", ", ".join(map(str, seeds)))
    to_pil(image).save(path, pnginfo=about)
    print(path)
