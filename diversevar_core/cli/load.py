"""Load what the command line's options name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..checkpoints.loading import load_model, load_vae
from ..conditions import Condition, Labels, Text
from ..errors import UserError, check_choice
from ..images import into_square, open_image, out_of_square
from ..job import PLAIN, Chain, draw
from ..models.compiled import compile_blocks
from ..models.family import Family
from ..models.packed import fastest_dtype, pack
from ..sampling.pairing import check_pair, image_size
from ..schedule import Schedule
from ..settings import Settings
from ..text.encoder import load_text_encoder
from ..vae.autoencoder import to_image
from ..vae.vae import VAE


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, loaded."""

    model: Family
    vae: VAE
    condition: Condition
    schedule: Schedule
    settings: Settings
    seed: int
    exact_batch: bool
    size: tuple[int, int] | None  # width and height of the source image

    @torch.no_grad()
    def run(self, settings: Settings, chain: Chain = PLAIN) -> tuple[list[int], Tensor]:
        """Choose seeds and draw: seeds, and images (B, 3, H, W) in 0..1, in the source's size."""
        models = self.model, self.vae, self.condition, self.schedule
        drawn = draw(*models, settings, self.seed, chain, exact_batch=self.exact_batch)
        *_, last = drawn.steps
        images = to_image(self.vae.decode(last.f_hat))
        return drawn.seeds, out_of_square(images.cpu(), *self.size) if self.size else images


def prepare(args: argparse.Namespace) -> Job:
    """Load the models, the condition and the settings."""
    device = device_of(args.device)
    model, vae = load_pair(args, device)
    schedule = model.schedule(args.aspect, args.pixels)
    source = source_of(args, model, vae, schedule, device)
    condition = condition_of(args, model, source, device)
    settings = replace(model.defaults(), **set_in(args, Settings))
    size = open_image(args.source).size if args.source else None
    return Job(model, vae, condition, schedule, settings, args.seed, args.exact_batch, size)


def set_in(args: argparse.Namespace, kind: type) -> dict[str, object]:
    """The options that a user set, of those that are fields of a dataclass."""
    names = {field.name for field in fields(kind)}
    return {name: v for name, v in vars(args).items() if name in names and v is not None}


def load_pair(args: argparse.Namespace, device: str) -> tuple[Family, VAE]:
    """The transformer and the VAE that the options name."""
    model = load_model(args.model, device, dtype_of(args.dtype, device), task=args.task)
    vae = load_vae(args.vae, device)
    check_pair(model, vae)
    if args.compile:
        compile_blocks(model, device)
    elif device == "cpu":
        pack(model)
    return model, vae


def devices() -> list[str]:
    """The available devices, the fastest first."""
    cards = [
        name
        for kind in ("cuda", "xpu")
        if getattr(torch, kind).is_available()
        for name in (kind, *(f"{kind}:{i}" for i in range(getattr(torch, kind).device_count())))
    ]
    return [*cards, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def device_of(name: str | None) -> str:
    """The device of this name, or the fastest one; UserError if it is not available."""
    available = devices()
    name = name or available[0]
    check_choice("device", name, available)
    return name


def dtype_of(name: str | None, device: str) -> torch.dtype | None:
    """The type that --dtype names; None: ``load_model`` decides."""
    if name == "fastest":
        return fastest_dtype() if device == "cpu" else None
    return name and getattr(torch, name)


def condition_of(
    args: argparse.Namespace, model: Family, source: Tensor | None, device: str
) -> Condition:
    """The condition of all images: class labels, or the text of prompts.

    Of several prompts, those that the model does not know are left out, in ``args`` too.
    """
    if model.reads is Labels:
        if source is not None:
            raise UserError(f"{model.name} cannot edit images; leave out the source.")
        if args.labels is None:
            raise UserError(f"{model.name} takes classes; give --labels.")
        labels = cycle([torch.tensor(label) for label in args.labels], args.batch, device)
        return Labels(torch.stack(labels))
    if args.prompts is None:
        raise UserError(f"{model.name} takes a prompt; give --prompt.")
    encoder = load_text_encoder(args.text_encoder, device)
    args.prompts, notes = encoder.known_of(args.prompts)
    positive = cycle(encoder(args.prompts), args.batch, device)
    negative = cycle(encoder([args.negative]), len(positive), device) if args.negative else None
    for said in notes:
        print(said, file=sys.stderr)
    return Text(positive, negative, source)


def cycle(values: Sequence[Tensor], count: int | None, device: str) -> list[Tensor]:
    """``count`` values, repeating them from the start as needed; None: each one once."""
    return [values[i % len(values)].to(device) for i in range(count or len(values))]


@torch.no_grad()
def source_of(
    args: argparse.Namespace, model: Family, vae: VAE, schedule: Schedule, device: str
) -> Tensor | None:
    """Features of the image to edit, None without one."""
    if not args.source:
        return None
    height, width = image_size(model, vae, schedule)
    if height != width:
        raise UserError("Images are edited in a square; leave --aspect at 1:1.")
    return vae.features(into_square(open_image(args.source), width).to(device))
