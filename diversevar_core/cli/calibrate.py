"""Find the strengths that suit a model.

Try several strengths on a few prompts, plot diversity against the model's own judgement, and save
the best next to the model, for --preset 'my calibration'.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ..analysis.calibrate import Task, calibrate, choose, labels_of, lines_of
from ..analysis.front import front_plot
from ..conditions import Labels, Text
from ..images import to_pil
from ..presets import calibration_path
from ..text.encoder import load_text_encoder
from .load import device_of, load_pair
from .options import add_model_options, whole
from .output import IMAGE_SUFFIXES, place


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_options(command)
    command.add_argument(
        "--prompts", type=Path, required=True, help="text file with a prompt or class per line"
    )
    command.add_argument("--seeds", type=whole(2, 64), default=6, help="images per prompt")
    command.add_argument("--out", type=Path, help="the plot (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure every preset, save the choice next to the model, plot, print what was chosen."""
    args.out, device = place(args.out, *IMAGE_SUFFIXES), device_of(args.device)
    model, vae = load_pair(args, device)
    lines = lines_of(args.prompts.read_text(errors="replace"))
    if model.reads is Labels:
        conditions = [Labels(torch.tensor([label], device=device)) for label in labels_of(lines)]
    else:
        encoder = load_text_encoder(args.text_encoder, device)
        conditions = [Text(encoder([line])) for line in lines]
    path, started = calibration_path(Path(args.model)), time.monotonic()
    task = Task(model, vae, conditions, args.seeds)
    begun, measured = 0.0, []
    for now, done in calibrate(task, path):
        measured = now
        begun = begun or done
        if begun < done < 1:
            left = (time.monotonic() - started) * (1 - done) / (done - begun)
            print(f"{done:.0%} done, about {left:.0f} s left", file=sys.stderr)
    chosen = choose(measured)
    to_pil(front_plot(measured, chosen)).save(args.out)
    print(f"{chosen.preset}: saved to {path}, plot in {args.out}")
