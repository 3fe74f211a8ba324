"""Make images."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

from ..images import sheet
from ..job import Chain
from ..methods.adaptive import AdaptiveScaling
from ..methods.fastvar import FastVAR
from ..methods.path_search import PathSearch
from ..methods.repulsion import Repulsion
from ..methods.scalekv import ScaleKV
from ..methods.ssr_sar import SITES, DiverseVAR
from ..methods.starts import Starts
from ..methods.text_noise import TextNoise
from ..presets import CALIBRATION, MOST, PRESETS, Preset, preset_named
from .load import prepare, set_in
from .options import add_sampling_options, add_subject_options, integers, whole
from .output import IMAGE_SUFFIXES, place, save_image


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_subject_options(command)
    add_sampling_options(command)
    diverse = command.add_argument_group("DiverseVAR (arXiv 2511.17074)")
    diverse.add_argument("--ssr", type=float, help="suppression strength, 0 is off")
    diverse.add_argument("--sar", type=float, help="amplification strength, 0 is off")
    diverse.add_argument("--sides", type=integers, help="of the maps to act on (default: 4,6)")
    diverse.add_argument("--site", choices=SITES, default="block")
    diverse.add_argument("--ssr-alpha", type=float, default=1.0, help="overall gain of SSR")
    diverse.add_argument("--sar-alpha", type=float, default=1.0, help="overall gain of SAR")
    diverse.add_argument("--absolute", action="store_true", help="strengths per s, not s / s_1")
    other = command.add_argument_group("other ways to make seeds differ")
    other.add_argument(
        "--preset",
        choices=[*PRESETS, CALIBRATION],
        help="sets --guidance-start, --starts, --ssr, --sar, --repulsion; such an option wins",
    )
    other.add_argument(
        "--guidance-start",
        type=int,
        metavar="SIDE",
        help="no guidance and temperature 1 at the maps before this side",
    )
    other.add_argument(
        "--starts",
        type=whole(1, MOST.starts),
        help="seeds to start; only the most different are finished",
    )
    other.add_argument("--starts-side", type=int, default=6, help="last map that is compared")
    other.add_argument("--repulsion", type=float, help="batch repulsion's strength, 0 is off")
    other.add_argument("--repulsion-side", type=int, default=4, help="last map that it acts on")
    other.add_argument(
        "--adaptive", type=float, default=0.0, help="adaptive logits scaling, 0 (off) to 1"
    )
    other.add_argument("--paths", type=int, default=1, help="candidates of the path search")
    other.add_argument("--paths-ahead", type=int, default=1, help="maps to look ahead")
    other.add_argument("--text-noise", type=float, default=0.0, help="its strength, 0 is off")
    other.add_argument(
        "--travel", type=int, default=0, help="draw the maps after this side again, 0 is off"
    )
    fast = command.add_argument_group("FastVAR (arXiv 2503.23367): large images in less time")
    fast.add_argument(
        "--prune", type=float, default=0.0, help="share of tokens left out (published 0.5)"
    )
    fast.add_argument("--skip", type=int, default=0, help="last maps left out (published 2)")
    small = command.add_argument_group("ScaleKV (arXiv 2505.19602): large images in less memory")
    small.add_argument(
        "--cache", type=float, default=1.0, help="share of keys and values kept (published 0.1)"
    )


def run(args: argparse.Namespace) -> None:
    """Make images, save them, print the path."""
    args.out = place(args.out, *IMAGE_SUFFIXES)
    preset = preset_named(args.preset or "as published", Path(args.model))
    preset = replace(preset, **set_in(args, Preset))
    chain, job = chain_of(args, preset), prepare(args)
    seeds, images = job.run(preset.settings(job.settings), chain)
    save_image(args.out, sheet(images, math.ceil(math.sqrt(len(images)))), seeds)


def chain_of(args: argparse.Namespace, preset: Preset) -> Chain:
    """The methods that the options and the preset turn on."""
    spectral = DiverseVAR(
        ssr=preset.ssr,
        sar=preset.sar,
        sides=args.sides,
        site=args.site,
        ssr_alpha=args.ssr_alpha,
        sar_alpha=args.sar_alpha,
        relative=not args.absolute,
    )
    spectral_acts = preset.ssr or preset.sar or (args.ssr_alpha, args.sar_alpha) != (1, 1)
    methods = (
        (spectral_acts, spectral),
        (preset.repulsion, Repulsion(preset.repulsion, args.repulsion_side)),
        (args.adaptive, AdaptiveScaling(args.adaptive)),
        (args.paths != 1, PathSearch(args.paths, args.paths_ahead)),
        (args.text_noise, TextNoise(args.text_noise)),
        (args.prune or args.skip, FastVAR(args.prune, args.skip)),
        (args.cache != 1, ScaleKV(args.cache)),
    )
    starts = Starts(preset.starts, args.starts_side)
    return Chain(tuple(method for acts, method in methods if acts), starts, args.travel or None)
