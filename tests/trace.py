"""Draw as the original implementations do, and write every map's logits and tokens.

``python -m tests.trace --trace FILE`` takes the options of ``sample`` but for methods and presets.
The header of FILE has the schedule, [h, w] of every map; ``tokens.K`` (or ``bits.K``) and
``logits.K`` are the map of scale K, ``f_hat`` their sum and ``image`` the decoded images. With
``--follow``, every map comes after the tokens of another trace, in place of those drawn before it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diversevar_core.cli.load import condition_of, cycle, device_of, load_pair, set_in, source_of
from diversevar_core.cli.options import add_sampling_options, add_subject_options
from diversevar_core.cli.output import IMAGE_SUFFIXES, place, save_image
from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.images import sheet
from diversevar_core.models.family import Family
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import Scale, Schedule
from diversevar_core.settings import Settings
from diversevar_core.vae.autoencoder import to_image
from diversevar_core.vae.vae import VAE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tests.trace", description=__doc__)
    add_subject_options(made)
    add_sampling_options(made)
    made.add_argument("--trace", type=Path, required=True, help="safetensors file to write")
    made.add_argument("--rng", choices=("per-image", "shared"), default="per-image")
    made.add_argument("--cfg-layer", type=int, help="0 guides logits, -m block depth-m")
    made.add_argument(
        "--text-features",
        help="safetensors: text (sum of lengths, Ct), split by lens; negative_text, negative_lens",
    )
    made.add_argument("--source-features", help="safetensors: features (1, d, H, W)")
    made.add_argument("--follow", help="safetensors: tokens.K or bits.K of every map")
    return made


class Follow(Method):
    """Go on with these tokens, (B, n) or (B, n, bits) of every map; ``own`` are those drawn."""

    def __init__(self, maps: Sequence[torch.Tensor]):
        self.maps, self.own = maps, []

    def tokens(self, tokens: torch.Tensor, scale: Scale) -> torch.Tensor:
        self.own.append(tokens)
        return self.maps[scale.k].to(tokens)


def text_in(path: str, batch: int | None, device: str) -> Text:
    """The text features of a file, repeated as needed."""
    tensors = load_file(path)
    positive = tensors["text"].split(tensors["lens"].tolist())
    positive, negative = cycle(positive, batch, device), None
    if "negative_text" in tensors:
        negative = tensors["negative_text"].split(tensors["negative_lens"].tolist())
        negative = cycle(negative, len(positive), device)
    return Text(positive, negative)


def subject_of(
    args: argparse.Namespace, model: Family, vae: VAE, schedule: Schedule, device: str
) -> Condition:
    """What the images show: features from files, or what the options of ``sample`` say."""
    if args.source_features:
        source = load_file(args.source_features)["features"].to(device)
    else:
        source = source_of(args, model, vae, schedule, device)
    if args.text_features:
        return replace(text_in(args.text_features, args.batch, device), source=source)
    return condition_of(args, model, source, device)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.out = place(args.out, *IMAGE_SUFFIXES)
    device = device_of(args.device)
    model, vae = load_pair(args, device)
    schedule = model.schedule(args.aspect, args.pixels)
    condition = subject_of(args, model, vae, schedule, device)
    settings = replace(model.defaults(), **set_in(args, Settings))
    seeds = range(args.seed, args.seed + len(condition))
    name = "tokens" if model.reads is Labels else "bits"
    methods = []
    if args.follow:
        theirs = load_file(args.follow)
        methods = [Follow([theirs[f"{name}.{scale.k}"] for scale in schedule])]
    options = {"shared": args.rng == "shared", "exact_batch": args.exact_batch, "methods": methods}
    steps = list(sample(model, vae, condition, schedule, settings, seeds, **options))
    image = to_image(vae.decode(steps[-1].f_hat))
    save_image(args.out, sheet(image, len(image)), seeds)  # first, as a trace can fill the disk
    drawn = methods[0].own if methods else [step.tokens for step in steps]
    tensors = {"f_hat": steps[-1].f_hat, "image": image}
    for step, tokens in zip(steps, drawn, strict=True):
        tensors |= {f"{name}.{step.scale.k}": tokens, f"logits.{step.scale.k}": step.logits}
    header = {"schedule": json.dumps([[scale.h, scale.w] for scale in schedule])}
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, args.trace, header)


if __name__ == "__main__":
    main()
