"""Make a batch as published and with presets, one row each."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..images import captioned_rows
from ..presets import CALIBRATION, PRESETS, preset_named
from .load import prepare
from .options import add_sampling_options, add_subject_options
from .output import IMAGE_SUFFIXES, place, save_image


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_subject_options(command)
    add_sampling_options(command)
    command.add_argument(
        "--presets",
        nargs="+",
        choices=[*PRESETS, CALIBRATION],
        default=["SSR + SAR (DiverseVAR)", "balanced", "most different"],
    )
    command.set_defaults(prompts=["birthday cake"], batch=8)


def run(args: argparse.Namespace) -> None:
    """Make a batch as published and with every preset, save one row each, print the path."""
    args.out = place(args.out, *IMAGE_SUFFIXES)
    job = prepare(args)
    rows = []
    for name in ("as published", *args.presets):
        preset = preset_named(name, Path(args.model))
        _, images = job.run(preset.settings(job.settings), preset.chain())
        rows.append((name if str(preset) == name else f"{name}: {preset}", images))
    save_image(args.out, captioned_rows(rows))
