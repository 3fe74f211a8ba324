"""``sample``: make images."""

from __future__ import annotations

import argparse
import math
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
from ..presets import CALIBRATION, PRESETS, preset_named
from .load import prepare
from .options import add_sampling_options, add_subject_options, integers
from .output import IMAGE_SUFFIXES, place, save_image, save_trace


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    command = commands.add_parser("sample", help="make images", description="Make images.")
    command.set_defaults(run=run)
    add_subject_options(command)
    add_sampling_options(command)
    add_method_options(command)
    command.add_argument("--trace", type=Path, help="safetensors file for all logits and tokens")


def add_method_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the methods."""
    diverse = command.add_argument_group("DiverseVAR (arXiv 2511.17074)")
    diverse.add_argument("--ssr", type=float, default=0.0, help="suppression strength, 0 is off")
    diverse.add_argument("--sar", type=float, default=0.0, help="amplification strength, 0 is off")
    diverse.add_argument("--sides", type=integers, help="of the maps to act on (default: 4,6)")
    diverse.add_argument("--site", choices=SITES, default="block")
    diverse.add_argument("--ssr-alpha", type=float, default=1.0, help="overall gain of SSR")
    diverse.add_argument("--sar-alpha", type=float, default=1.0, help="overall gain of SAR")
    diverse.add_argument("--absolute", action="store_true", help="strengths per s, not s / s_1")
    other = command.add_argument_group("other ways to make seeds differ")
    other.add_argument(
        "--preset",
        choices=[*PRESETS, CALIBRATION],
        help="sets --guidance-start, --starts, --ssr, --sar and --repulsion",
    )
    other.add_argument(
        "--starts", type=int, default=1, help="seeds to start; only the most different are finished"
    )
    other.add_argument("--starts-side", type=int, default=6, help="last map that is compared")
    other.add_argument(
        "--repulsion", type=float, default=0.0, help="batch repulsion's strength, 0 is off"
    )
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
    args.trace = args.trace and place(args.trace, ".safetensors")
    job, chain = prepare(args), chain_of(args)
    settings = job.settings
    if args.preset:
        preset = preset_named(args.preset, Path(args.model))
        settings, chain = preset.settings(settings), preset.chain(chain)
    seeds, steps = job.run(settings, chain)
    image = job.image(steps)
    if args.trace:
        maps, others = [step.tokens for step in steps], {"f_hat": steps[-1].f_hat, "image": image}
        others |= {f"logits.{step.scale.k}": step.logits for step in steps}
        save_trace(args.trace, job.vae.token_kind, job.schedule, maps, others)
    image = job.as_source(image)
    save_image(args.out, sheet(image, math.ceil(math.sqrt(len(image)))), seeds)


def chain_of(args: argparse.Namespace) -> Chain:
    """The methods that the options turn on."""
    spectral = DiverseVAR(
        ssr=args.ssr,
        sar=args.sar,
        sides=args.sides,
        site=args.site,
        ssr_alpha=args.ssr_alpha,
        sar_alpha=args.sar_alpha,
        relative=not args.absolute,
    )
    spectral_acts = args.ssr or args.sar or (args.ssr_alpha, args.sar_alpha) != (1, 1)
    methods = (
        (spectral_acts, spectral),
        (args.repulsion, Repulsion(args.repulsion, args.repulsion_side)),
        (args.adaptive, AdaptiveScaling(args.adaptive)),
        (args.paths != 1, PathSearch(args.paths, args.paths_ahead)),
        (args.text_noise, TextNoise(args.text_noise)),
        (args.prune or args.skip, FastVAR(args.prune, args.skip)),
        (args.cache != 1, ScaleKV(args.cache)),
    )
    starts = Starts(args.starts, args.starts_side) if args.starts != 1 else None
    return Chain(tuple(method for acts, method in methods if acts), starts, args.travel or None)
