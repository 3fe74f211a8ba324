"""Options that several commands have, and parsers of their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import included
from ..errors import UserError
from ..models.infinity import TASKS
from ..schedule import PIXELS


def numbers(text: str) -> tuple[float, ...]:
    """``4,4,3`` -> (4.0, 4.0, 3.0)."""
    return tuple(float(part) for part in text.split(","))


def integers(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    return tuple(int(part) for part in text.split(","))


def aspect(text: str) -> float:
    """``4:3`` or ``1.333`` -> height / width."""
    height, _, width = text.partition(":")
    if width and float(width) == 0:
        raise UserError("there is no width")
    return float(height) / float(width or 1)


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
    what.add_argument("--text-features", help="safetensors with text, lens[, negative_text, ...]")
    what.add_argument("--source", help="editing models: the image; --prompt says what to change")
    what.add_argument("--source-features", help="the same as safetensors: features (1, d, H, W)")
    what.add_argument("--labels", type=integers, help="class labels, as in 3,7")
    what.add_argument("--batch", type=int, help="images (default: one per prompt or label)")


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes images."""
    add_model_options(command)
    what = command.add_argument_group("how it is drawn")
    what.add_argument("--negative", help="negative prompt")
    what.add_argument("--seed", type=int, default=0, help="image i has seed + i (default 0)")
    what.add_argument("--rng", choices=("per-image", "shared"), default="per-image")
    what.add_argument(
        "--exact-batch", action="store_true", help="compute each image of a batch alone"
    )
    what.add_argument("--aspect", type=aspect, default=1.0, help="height to width: 4:3 or 1.333")
    what.add_argument("--pixels", choices=tuple(PIXELS), help="pixel budget (default: the model's)")
    how = command.add_argument_group(
        "how to sample (defaults: the model family's official settings)"
    )
    how.add_argument("--cfg", type=numbers, help="guidance, one value or one per scale")
    how.add_argument("--cfg-schedule", choices=("flat", "ramp"))
    how.add_argument("--cfg-layer", type=int, help="0 guides logits, -m block depth-m")
    how.add_argument("--tau", type=numbers, help="temperature, one value or one per scale")
    how.add_argument(
        "--guidance-start",
        type=int,
        metavar="SIDE",
        help="no guidance and temperature 1 at the maps before this side",
    )
    how.add_argument(
        "--guidance-end", type=int, metavar="SIDE", help="no guidance at the maps after this side"
    )
    how.add_argument("--top-k", type=int, help="0 is off")
    how.add_argument("--top-p", type=float, help="0 is off")
    how.add_argument("--more-smooth", action="store_true", default=None, help="VAR: blend rows")
    out = command.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, default=Path("diversevar.png"), help="image file (several: a grid)"
    )
