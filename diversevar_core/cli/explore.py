"""Make images of several prompts with the same seeds.

Writes a contact sheet with a row for each prompt, and next to it each image, NAME-ROW-NUMBER.
"{red|green} apple" is two prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..images import Row, contact_sheet
from ..presets import CALIBRATION, PRESETS, preset_named
from ..text.combinations import prompts_of
from .load import prepare
from .options import add_sampling_options, whole
from .output import IMAGE_SUFFIXES, place, save_image


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("prompts", nargs="+", metavar="prompt", help="text of the images")
    command.add_argument(
        "--seeds", type=whole(1, 1024), default=6, help="images of each prompt (default 6)"
    )
    command.add_argument("--preset", choices=[*PRESETS, CALIBRATION], default="balanced")
    add_sampling_options(command)
    command.set_defaults(batch=None, labels=None, source=None)


def run(args: argparse.Namespace) -> None:
    """Draw the prompts one after the other, save the images and their sheet, print the paths."""
    args.out = place(args.out, *IMAGE_SUFFIXES)
    args.prompts = prompts_of("\n".join(args.prompts))
    job, preset = prepare(args), preset_named(args.preset, Path(args.model))
    rows = []
    for prompt, condition in zip(args.prompts, job.condition.split(), strict=True):
        own = replace(job, condition=condition.repeat(args.seeds))
        seeds, images = own.run(preset.settings(job.settings), preset.chain())
        images = list(images.cpu())
        for number, (image, seed) in enumerate(zip(images, seeds, strict=True), 1):
            name = f"{args.out.stem}-{len(rows) + 1}-{number}"
            save_image(args.out.with_stem(name), image, [seed])
        rows.append(Row(prompt, images, [f"seed {seed}" for seed in seeds]))
    save_image(args.out, contact_sheet(rows))
