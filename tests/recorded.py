"""Runs of a model beside recorded ones, map by map: the originals', or those of another device.

Sampling goes on from the recorded tokens, whatever was drawn, so every map is compared. Sums round
as a device orders them, so a token may turn if its choice was closer than ``TOLERANCE``.
"""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from cases import Case, arguments
from torch import Tensor

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.cli.load import set_in
from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.sampling.method import Context, Method, Methods, Step
from diversevar_core.sampling.random import PerImage, Shared, Stream, pick, truncate
from diversevar_core.sampling.sampler import scale_loop
from diversevar_core.settings import Settings, guidance
from diversevar_core.vae.autoencoder import to_image

# by its path: a package of the name tests may be installed, and Python has a module trace
spec = importlib.util.spec_from_file_location("tests.trace", Path(__file__).with_name("trace.py"))
trace = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trace)

# Of logits, features, images. A logit is the end of about 30 chained float32 sums of up to 1024
# terms; each is off by about sqrt(1024) * 2**-24 = 2e-6 of its terms' size, together by 1e-5 times
# what guidance (up to 7) and temperature (0.1 to 1) make of it. Found on CPUs: 2e-6 to 7e-5.
TOLERANCE = 2e-4
CPU = torch.device("cpu")


class Record(NamedTuple):
    """What a run gave."""

    logits: list[Tensor]  # of each map, maybe of every n-th token only
    tokens: list[Tensor]
    f_hat: Tensor
    image: Tensor  # in 0..1, maybe every n-th pixel only
    rounded: float = 0.0  # by how much, to store the image


class Difference(NamedTuple):
    """How far a run is from a recorded one; the largest numbers."""

    tokens: int
    turned: int  # of them
    margin: float  # that logits had to move for the turned tokens, about; see ``margin_of``
    logits: float
    f_hat: float
    image: float

    @property
    def near(self) -> bool:
        """Whether it is only what rounding explains.

        A choice is a near tie with a chance of less than the width of both tolerances.
        """
        return max(self[2:]) <= TOLERANCE and self.turned <= 1 + 2 * TOLERANCE * self.tokens


class OnCPU:
    """A stream that draws on the CPU, as recorded runs did, and keeps a map's numbers."""

    def __init__(self, stream: Stream):
        self.stream, self.noise = stream, []

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        self.noise.append(self.stream.exponential(shape, CPU).to(device))
        return self.noise[-1]


class Models:
    """Models on a device, and what is drawn with them: options of ``tests.trace``, and methods."""

    def __init__(
        self,
        args: Namespace,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        methods: Sequence[Method] = (),
    ):
        self.args, self.device, self.methods = args, torch.device(device), methods
        self.model = load_model(args.model, self.device, dtype, task=args.task)
        self.vae = load_vae(args.vae, self.device, dtype)
        self.schedule = self.model.schedule(args.aspect, args.pixels)
        self.settings = replace(self.model.defaults(), **set_in(args, Settings))
        self.plan = guidance(self.settings, self.schedule)
        # a text encoder on the CPU gives every device the same features
        subject = trace.subject_of(args, self.model, self.vae, self.schedule, "cpu")
        self.condition = moved(subject, self.device)

    def steps(self, recorded: Sequence[Tensor] = ()) -> Iterator[tuple[Step, Tensor, Tensor]]:
        """Sample, from these tokens if there are any; yields steps, drawn tokens, their noise."""
        seed, images = self.args.seed, range(len(self.condition))
        shared = self.args.rng == "shared"
        stream = OnCPU(Shared(seed, CPU) if shared else PerImage([seed + i for i in images]))
        # what more_smooth blends does not depend on the tokens
        follow = trace.Follow(recorded) if recorded and not self.settings.more_smooth else None
        methods = Methods([*self.methods, *([follow] if follow else [])])
        sizes = self.model.token_kind.choices, self.model.depth
        context = Context(self.schedule, images, images, self.condition, self.plan, *sizes)
        for step in scale_loop(self.model, self.vae, context, self.settings, stream, methods):
            yield step, follow.own.pop() if follow else step.tokens, stream.noise[0]
            stream.noise.clear()

    def image(self, f_hat: Tensor) -> Tensor:
        """Decode: images (B, 3, H, W) in 0..1, on the CPU."""
        return to_image(self.vae.decode(f_hat.to(self.device))).cpu()

    def record(self) -> Record:
        """Sample, to compare other devices with."""
        steps = [step for step, *_ in self.steps()]
        logits, tokens = [step.logits for step in steps], [step.tokens for step in steps]
        return Record(logits, tokens, steps[-1].f_hat, self.image(steps[-1].f_hat))


def moved(condition: Condition, device: torch.device) -> Condition:
    """The condition on another device."""
    if isinstance(condition, Labels):
        return Labels(condition.labels.to(device))
    positive = [row.to(device) for row in condition.positive]
    negative = condition.negative and [row.to(device) for row in condition.negative]
    source = condition.source
    return Text(positive, negative, source if source is None else source.to(device))


@torch.no_grad()
def compare(models: Models, record: Record) -> Difference:
    """Sample beside a recorded run."""
    top, choices = (models.settings.top_k, models.settings.top_p), models.model.token_kind.choices
    count, turned, margin, off = 0, 0, 0.0, []
    for step, drawn, noise in models.steps(record.tokens):
        want = record.logits[step.scale.k]
        stride = max(step.logits.shape[1] // want.shape[1], 1)
        off.append(largest(step.logits[:, ::stride][:, : want.shape[1]], want))
        theirs = record.tokens[step.scale.k].to(drawn).view_as(drawn)
        count, turned = count + drawn.numel(), turned + int((drawn != theirs).sum())
        logits = step.logits.unflatten(-1, (-1, choices))
        pair = (tokens.view(logits.shape[:-1]) for tokens in (drawn, theirs))
        margin = max(margin, margin_of(logits, noise, *pair, *top))
    image = models.image(record.f_hat)
    stride = image.shape[-1] // record.image.shape[-1]
    seen = largest(image[..., ::stride, ::stride], record.image) - record.rounded
    f_hat = largest(step.f_hat, record.f_hat)
    if models.settings.more_smooth:
        f_hat -= sharpened(models, off)
    return Difference(count, turned, margin, max(off), max(f_hat, 0.0), max(seen, 0.0))


def sharpened(models: Models, errors: Sequence[float]) -> float:
    """How far f_hat of ``more_smooth`` may be off if the maps' logits are off by so much.

    The mixture is a softmax of ((1 + t) logits + noise) / tau, t the progress and tau 0.27 to
    0.0135. Arguments that are off by e move weights by e in all, and so a map's rows by e times the
    codebook's largest number; at the last map (1 + t) / tau is 148.
    """
    rows = models.vae.quantize.embedding.weight.abs().max().item()
    times = [scale.progress for scale in models.schedule]
    gains = [(1 + t) / (0.27 * (1 - 0.95 * t)) for t in times]
    return rows * sum(gain * error for gain, error in zip(gains, errors, strict=True))


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; theirs may be on another device."""
    return (ours - theirs.to(ours)).abs().max().item()


def margin_of(
    logits: Tensor, noise: Tensor, ours: Tensor, theirs: Tensor, top_k: int, top_p: float
) -> float:
    """How far logits (B, ..., choices) must move for our tokens to become theirs, about.

    That covers ties in the noise, and at the edge of what top_k and top_p keep. 0 if they are.
    """
    turned = ours != theirs
    for nudge in (0, TOLERANCE / 100, TOLERANCE / 10, TOLERANCE):
        moved = torch.zeros_like(logits).scatter_(-1, ours.unsqueeze(-1), -nudge)
        moved.scatter_(-1, theirs.unsqueeze(-1), nudge)
        nudged = pick(truncate(logits + moved, top_k, top_p), noise)
        if torch.equal(nudged[turned], theirs[turned]):
            return nudge
    return float("inf")


def options(*given: object) -> Namespace:
    """The options of ``tests.trace``."""
    return trace.parser().parse_args([*map(str, given), "--trace", "unused"])


def models_of(case: Case, i: int, folder: Path, device: str = "cpu") -> Models:
    """The models of a reference case's run."""
    return Models(options(*arguments(case, i, folder)), device)


def record_of(case: Case, i: int, models: Models) -> Record:
    """What the original gave in a reference case's run."""
    expected, logits, tokens = case.expected, [], []
    for k, (g, tau) in enumerate(models.plan):
        rows = expected[f"run{i}.logits.{k}"] / tau
        if len(rows) > len(models.condition):
            rows = g * rows.chunk(2)[0] + (1 - g) * rows.chunk(2)[1]
        logits.append(rows)
        kind = "tokens" if "labels" in case.about else "bits"
        tokens.append(expected[f"run{i}.{kind}.{k}"].long())
    f_hat = expected[f"run{i}.f_hat"]
    if kind == "tokens":
        return Record(logits, tokens, f_hat, expected[f"run{i}.image"])
    image = expected[f"run{i}.image_bgr_uint8"].flip(-1).movedim(-1, 1)
    return Record(logits, tokens, f_hat, image / 255, rounded=1 / 255)
