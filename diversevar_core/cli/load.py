"""Load what the command line's options name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.loading import load_model, load_vae
from ..conditions import Condition, Labels, Text
from ..errors import UserError, quote
from ..images import into_square, open_image, out_of_square
from ..job import PLAIN, Chain, draw
from ..models.compiled import compile_blocks
from ..models.family import Family
from ..models.packed import fastest_dtype, pack
from ..sampling.method import Methods, Step
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
    shared: bool
    exact_batch: bool
    size: tuple[int, int] | None  # width and height of the source image

    def run(self, settings: Settings, chain: Chain = PLAIN) -> tuple[list[int], list[Step]]:
        """Choose seeds and sample; returns the seeds and the steps of the last pass."""
        how = (self.model, self.vae, self.condition, self.schedule, settings)
        options = {"shared": self.shared, "exact_batch": self.exact_batch}
        drawn = draw(*how, self.seed, chain, **options)
        return drawn.seeds, list(drawn.steps)[-len(Methods(chain.methods).drawn(self.schedule)) :]

    @torch.no_grad()
    def image(self, steps: list[Step]) -> Tensor:
        """Decode the last step: images (B, 3, H, W) in 0..1."""
        return to_image(self.vae.decode(steps[-1].f_hat))

    def as_source(self, images: Tensor) -> Tensor:
        """Images in the source image's size, if there is one."""
        return out_of_square(images.cpu(), *self.size) if self.size else images


def prepare(args: argparse.Namespace) -> Job:
    """Load the models, the condition and the settings."""
    device = device_of(args.device)
    model, vae = load_pair(args, device)
    schedule = model.schedule(args.aspect, args.pixels)
    source = source_of(args, model, vae, schedule, device)
    condition = condition_of(args, model, source, device)
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = replace(model.defaults(), **given)
    draws = args.seed, args.rng == "shared", args.exact_batch
    size = open_image(args.source).size if args.source else None
    return Job(model, vae, condition, schedule, settings, *draws, size)


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
    if name and name not in available:
        raise UserError(
            f"There is no device {quote(name)} here; choose one of {', '.join(available)}."
        )
    return name or available[0]


def dtype_of(name: str | None, device: str) -> torch.dtype | None:
    """The type that --dtype names; None: ``load_model`` decides."""
    if name == "fastest":
        return fastest_dtype() if device == "cpu" else None
    return name and getattr(torch, name)


def condition_of(
    args: argparse.Namespace, model: Family, source: Tensor | None, device: str
) -> Condition:
    """The condition of all images: class labels, or text from a prompt or a features file."""
    if model.reads is Labels:
        if source is not None:
            raise UserError(f"{model.name} cannot edit images; leave out the source.")
        if args.labels is None:
            raise UserError(f"{model.name} takes classes; give --labels.")
        labels = cycle([torch.tensor(label) for label in args.labels], args.batch, device)
        return Labels(torch.stack(labels))
    if args.text_features:
        given = read_text_features(args.text_features)
    elif args.prompts is None:
        raise UserError(f"{model.name} takes a prompt; give --prompt, or --text-features.")
    else:
        encoder = load_text_encoder(args.text_encoder, device)
        given = Text(encoder(args.prompts), encoder([args.negative]) if args.negative else None)
        for said in filter(None, (encoder.read(prompt)[1] for prompt in args.prompts)):
            print(said, file=sys.stderr)
    positive = cycle(given.positive, args.batch, device)
    negative = given.negative and cycle(given.negative, len(positive), device)
    return Text(positive, negative, source)


def cycle(values: Sequence[Tensor], count: int | None, device: str) -> list[Tensor]:
    """``count`` values, repeating them from the start as needed; None: each one once."""
    if count is not None and count < 1:
        raise UserError(f"--batch must be 1 or more, not {count}.")
    return [values[i % len(values)].to(device) for i in range(count or len(values))]


def read_text_features(path: str) -> Text:
    """Read text features: ``text`` (sum of lengths, Ct), split by ``lens``; same for negatives."""
    try:
        tensors = load_file(path)
        negative = None
        if "negative_text" in tensors:
            negative = tensors["negative_text"].split(tensors["negative_lens"].tolist())
        return Text(tensors["text"].split(tensors["lens"].tolist()), negative)
    except KeyError as error:
        raise UserError(f"{quote(path)} lacks the tensor {error.args[0]}; add it.") from error
    except (SafetensorError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"{quote(path)} does not hold text features ({error}).") from error


@torch.no_grad()
def source_of(
    args: argparse.Namespace, model: Family, vae: VAE, schedule: Schedule, device: str
) -> Tensor | None:
    """Features of the image to edit, None without one."""
    if args.source_features:
        return read_source_features(args.source_features, device)
    if not args.source:
        return None
    height, width = image_size(model, vae, schedule)
    if height != width:
        raise UserError("Images are edited in a square; leave --aspect at 1:1.")
    return vae.features(into_square(open_image(args.source), width).to(device))


def read_source_features(path: str, device: str) -> Tensor:
    """Read source features (1, d, H, W) from a file."""
    try:
        features = load_file(path)["features"].to(device, torch.float32)
    except (KeyError, SafetensorError, OSError) as error:
        raise UserError(f"{quote(path)} does not hold source features ({error}).") from error
    if features.ndim != 4 or len(features) != 1:
        raise UserError(
            f"The features of {quote(path)} are {list(features.shape)}, not (1, d, H, W)."
        )
    return features
