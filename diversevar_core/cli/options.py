"""Options that several commands have, and parsers of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from ..checkpoints import included
from ..errors import quote
from ..models.infinity import TASKS
from ..schedule import PIXELS


def numbers(text: str) -> tuple[float, ...]:
    """``4,4,3`` -> (4.0, 4.0, 3.0)."""
    return tuple(float(part) for part in text.split(","))


def integers(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    return tuple(int(part) for part in text.split(","))


def whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of the whole numbers from ``least`` to ``most``."""

    def number(text: str) -> int:
        if text.isdecimal() and len(text) < 10 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {least} to {most}, not {quote(text)}"
        )

    return number


def aspect(text: str) -> float:
    """``16:9`` or ``1.778``, width to height -> height / width."""
    width, _, height = text.partition(":")
    ratio = float(width) / float(height or 1) if height.strip("0.") or not height else math.inf
    if not 0 < ratio < math.inf:
        raise argparse.ArgumentTypeError(f"must be width to height, as in 16:9, not {quote(text)}")
    return 1 / ratio


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add options for models, devices and types."""
    files = command.add_argument_group("models")
    files.add_argument("--model", default=included.MODEL, help="transformer: file or folder")
    files.add_argument("--vae", default=included.VAE, help="its VAE")
    files.add_argument(
        "--text-encoder",
        default=included.TEXT_ENCODER,
        help="T5: folder, or file with tokenizer.json next to it or in its header",
    )
    files.add_argument("--task", choices=TASKS, help="of an Infinity model (default: by its file)")
    files.add_argument("--device", help="cpu, cuda or mps (default: the fastest one)")
    files.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "fastest"),
        help="type that the transformer computes in (default: float32 on a CPU, else as stored); "
        "fastest: float32 or bfloat16, measured on this CPU. A seed's image depends on it",
    )
    files.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer's blocks, for a GPU: the first images take longer",
    )


def add_subject_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say what the images show."""
    what = command.add_argument_group("what to make")
    what.add_argument(
        "--prompt", dest="prompts", nargs=1, metavar="PROMPT", help="text of the image"
    )
    what.add_argument("--source", help="editing models: the image; --prompt says what to change")
    what.add_argument("--labels", type=integers, help="class labels, as in 3,7; 1000 is none")
    what.add_argument(
        "--batch", type=whole(1, 1024), help="images (default: one per prompt or label)"
    )


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes images."""
    add_model_options(command)
    what = command.add_argument_group("how it is drawn")
    what.add_argument("--negative", help="negative prompt")
    what.add_argument("--seed", type=int, default=0, help="image i has seed + i (default 0)")
    what.add_argument(
        "--exact-batch", action="store_true", help="compute each image of a batch alone"
    )
    what.add_argument("--aspect", type=aspect, default=1.0, help="width to height: 16:9 or 1.778")
    what.add_argument("--pixels", choices=tuple(PIXELS), help="pixel budget (default: the model's)")
    how = command.add_argument_group(
        "how to sample (defaults: the model family's official settings)"
    )
    how.add_argument("--cfg", type=numbers, help="guidance, one value or one per scale")
    how.add_argument("--cfg-schedule", choices=("flat", "ramp"))
    how.add_argument("--tau", type=numbers, help="temperature, one value or one per scale")
    how.add_argument(
        "--guidance-end", type=int, metavar="SIDE", help="no guidance at the maps after this side"
    )
    how.add_argument("--top-k", type=int, help="0 is off")
    how.add_argument("--top-p", type=float, help="0 is off")
    how.add_argument("--more-smooth", action="store_true", default=None, help="VAR: blend rows")
    out = command.add_argument_group("output")
    out.add_argument("--out", type=Path, help="image file, of several a grid (default %(default)s)")
