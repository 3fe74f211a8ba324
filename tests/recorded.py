"""Runs of a model beside recorded ones, map by map: the originals', or those of another device.

Sampling goes on from the recorded tokens, whatever was drawn, so every map is compared. Sums round
as a device orders them, so a token may turn if its choice was closer than ``TOLERANCE``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from cases import Case
from torch import Tensor

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.sampling.method import Context, Method, Methods, Step
from diversevar_core.sampling.random import Shared, Stream, pick, truncate
from diversevar_core.sampling.sampler import scale_loop
from diversevar_core.schedule import Scale
from diversevar_core.settings import guidance
from diversevar_core.vae.autoencoder import to_image

# Of logits, features, images. A logit is the end of about 30 chained float32 sums of up to 1024
# terms; each is off by about sqrt(1024) * 2**-24 = 2e-6 of its terms' size, together by 1e-5 times
# what guidance (up to 7) and temperature (0.1 to 1) make of it. Found on CPUs: 2e-6 to 7e-5.
TOLERANCE = 2e-4
CPU = torch.device("cpu")


@dataclass
class Job:
    """What is sampled, on any device."""

    model: Path
    vae: Path
    condition: Condition
    stream: Callable[[], Stream]
    size: tuple = ()  # aspect ratio and pixel budget, if not the model's own
    settings: dict = field(default_factory=dict)  # those that are not the model's own
    methods: tuple[Method, ...] = ()


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
        """Whether it is only what rounding explains."""
        return max(self[2:]) <= TOLERANCE


class OnCPU:
    """A stream that draws on the CPU, as recorded runs did, and keeps a map's numbers."""

    def __init__(self, stream: Stream):
        self.stream, self.noise = stream, []

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        self.noise.append(self.stream.exponential(shape, CPU).to(device))
        return self.noise[-1]


class Forced(Method):
    """Go on from recorded tokens, and remember those that were drawn."""

    order = 99

    def __init__(self, tokens: Sequence[Tensor]):
        self.recorded = tokens

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        self.drawn = tokens
        return self.recorded[scale.k].to(tokens).view_as(tokens)


class Models:
    """A job's models on a device."""

    def __init__(self, job: Job, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.job, self.device = job, torch.device(device)
        self.model = load_model(job.model, self.device, dtype)
        self.vae = load_vae(job.vae, self.device, dtype)
        self.schedule = self.model.schedule(*job.size)
        self.settings = replace(self.model.defaults(), **job.settings)
        self.plan = guidance(self.settings, self.schedule)
        self.condition = moved(job.condition, self.device)

    def steps(self, recorded: Sequence[Tensor] = ()) -> Iterator[tuple[Step, Tensor, Tensor]]:
        """Sample, from these tokens if there are any; yields steps, drawn tokens, their noise."""
        forced, stream = Forced(recorded), OnCPU(self.job.stream())
        # more_smooth blends codebook rows in place of tokens, so there is nothing to force
        free = not recorded or self.settings.more_smooth
        methods = Methods([*self.job.methods, *([] if free else [forced])])
        images, model = range(len(self.condition)), self.model
        sizes = model.token_kind.choices, model.depth
        context = Context(self.schedule, images, images, self.condition, self.plan, *sizes)
        for step in scale_loop(model, self.vae, context, self.settings, stream, methods):
            yield step, step.tokens if free else forced.drawn, stream.noise[0]
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


def job_of(case: Case, i: int) -> Job:
    """A reference case's run."""
    run, expected = case.runs[i], case.expected
    settings = {"cfg": listed(run["cfg"]), "top_k": run.get("top_k", 0)}
    settings |= {"top_p": run.get("top_p", 0.0)}
    stream = partial(Shared, run.get("seed", run.get("g_seed")), CPU)
    if "labels" in case.about:
        condition = Labels(torch.tensor(run.get("labels", case.about["labels"])))
        settings["more_smooth"] = run.get("more_smooth", False)
        return Job(case.model, case.vae, condition, stream, settings=settings)
    negative = None
    if "neg_lens" in run:
        negative = expected[f"run{i}.negative_text"].split(run["neg_lens"])
    rows = expected[f"run{i}.text"].split(run["lens"])
    condition = Text(rows, negative, expected.get(f"run{i}.source_features"))
    settings |= {"tau": listed(run["tau"]), "cfg_layer": run["cfg_insertion_layer"][0]}
    size = run.get("ratio", 1.0), case.about["config"]["pn"]
    return Job(case.model, case.vae, condition, stream, size, settings)


def listed(value: float | list[float]) -> list[float]:
    """One value for all maps, or one for each."""
    return value if isinstance(value, list) else [value]


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
