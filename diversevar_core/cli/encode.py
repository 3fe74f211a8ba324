"""Turn an image into token maps, and these into an image again."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..checkpoints.loading import load_vae
from ..images import open_image, resized
from ..schedule import checked_sides, square
from ..vae.autoencoder import to_image
from .options import integers
from .output import IMAGE_SUFFIXES, place, save_image


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("--vae", required=True, help="VAE")
    command.add_argument("--image", required=True, help="image file")
    command.add_argument("--sides", type=integers, required=True, help="of its maps: 1,2,4,6,8")
    command.add_argument("--out", type=Path, help="the decoded image (default %(default)s)")


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """Encode and decode an image, save the result, print the path."""
    args.out = place(args.out, *IMAGE_SUFFIXES)
    schedule = square(checked_sides(args.sides, "--sides"))
    vae = load_vae(args.vae)
    size = schedule[-1].w * vae.stride
    features = vae.features(resized(open_image(args.image), size, size))
    maps, f_hat = vae.quantize_maps(features, schedule), None
    for scale, tokens in zip(schedule, maps, strict=True):
        f_hat, _ = vae.accumulate(f_hat, tokens, scale)
    save_image(args.out, to_image(vae.decode(f_hat))[0])
