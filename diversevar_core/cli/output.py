"""Write results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from ..images import to_pil
from ..quote import quote
from ..sampling.schedule import Schedule
from ..vae.tokenizer import Tokenizer

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def place(path: Path, *suffixes: str) -> Path:
    """Prepare an output path: add the first suffix if it has none of them, and create its folder.

    Raises ValueError where the file cannot be written; call it before the long work.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file; choose another path")
        if path.suffix.lower() not in suffixes:
            path = path.with_name(path.name + suffixes[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{quote(path)} cannot be written: {reason}.") from error
    return path


def save_image(path: Path, image: Tensor, seeds: Sequence[int] = ()) -> None:
    """Write an image (3, H, W) in 0..1, its seeds in its metadata, and print the path."""
    about = PngInfo()
    if seeds:
        about.add_text("seeds", ", ".join(map(str, seeds)))
    to_pil(image).save(path, pnginfo=about)
    print(path)


def trace(maps: list[Tensor], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The maps by name: ``tokens.K``, or ``bits.K`` where tokens are bits, for scale K."""
    kind = "bits" if tokenizer.token_kind.choices == 2 else "tokens"
    return {f"{kind}.{k}": tokens for k, tokens in enumerate(maps)}


def save_trace(path: Path, schedule: Schedule, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, the schedule ([h, w] of every scale) in its header."""
    header = {"schedule": json.dumps([[scale.h, scale.w] for scale in schedule])}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, header)
