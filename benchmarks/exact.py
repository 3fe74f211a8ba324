"""Whether the device computes what the originals did, and what a CPU does.

Every map is compared, as sampling goes on from the recorded tokens whatever it draws itself. Sums
round as a device orders them, so a token may turn if its choice was closer than ``TOLERANCE``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Condition, Labels, Text
from diversevar_core.images import captioned_rows, to_pil
from diversevar_core.methods.ssr_sar import PAPER
from diversevar_core.models.family import Family
from diversevar_core.sampling.random import PerImage, Shared, Stream, pick, truncate
from diversevar_core.sampling.method import Context, Method, Step
from diversevar_core.sampling.sampler import sample, scale_loop
from diversevar_core.schedule import Scale, Schedule
from diversevar_core.settings import Settings, guidance
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from diversevar_core.vae.vae import VAE

from .card import ROOT, Card, Line

sys.path.append(str(ROOT / "tests"))
from cases import REFERENCE, Case, write_case  # noqa: E402

# Of logits, features, images. A logit is the end of about 30 chained float32 sums of up to 1024
# terms; each is off by about sqrt(1024) * 2**-24 = 2e-6 of its terms' size, together by 1e-5 times
# what guidance (up to 7) and temperature (0.1 to 1) make of it.
TOLERANCE = 2e-4
CPU = torch.device("cpu")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

torch.backends.cudnn.allow_tf32 = False  # torch's default rounds convolutions to 10 bits


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
    """What another run of a job gave."""

    logits: list[Tensor]  # of each map, maybe of every n-th token only
    tokens: list[Tensor]
    f_hat: Tensor
    image: Tensor  # in 0..1, maybe every n-th pixel only
    step: float = 0.0  # of the numbers that the image is stored in


class OnCPU:
    """A stream that draws on the CPU, as recorded runs did, and keeps a map's numbers."""

    def __init__(self, stream: Stream):
        self.stream, self.noise = stream, []

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        self.noise.append(self.stream.exponential(shape, CPU).to(device))
        return self.noise[-1]


class Forced(Method):
    """Go on from recorded tokens, if there are any, and remember the drawn ones."""

    order = 99

    def __init__(self, tokens: Sequence[Tensor]):
        self.recorded = tokens

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        self.drawn = tokens
        return self.recorded[scale.k].to(tokens).view_as(tokens) if self.recorded else tokens


@dataclass
class Models:
    """A job with its models on a device."""

    job: Job
    device: torch.device
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.model: Family = load_model(self.job.model, self.device, self.dtype)
        self.vae: VAE = load_vae(self.job.vae, self.device, self.dtype)
        self.schedule: Schedule = self.model.schedule(*self.job.size)
        self.settings: Settings = replace(self.model.defaults(), **self.job.settings)
        self.plan = guidance(self.settings, self.schedule)
        self.condition = moved(self.job.condition, self.device)

    def steps(self, tokens: Sequence[Tensor] = ()) -> Iterator[tuple[Step, Tensor, Tensor]]:
        """Sample; yields steps, drawn tokens, random numbers. tokens: to go on from instead."""
        forced, stream = Forced(tokens), OnCPU(self.job.stream())
        images, model = range(len(self.condition)), self.model
        context = Context(
            self.schedule, images, images, self.condition, self.plan,
            model.token_kind.choices, model.depth,
        )  # fmt: skip
        methods = [*self.job.methods, forced]
        for step in scale_loop(model, self.vae, context, self.settings, stream, methods):
            yield step, forced.drawn, stream.noise[0]
            stream.noise.clear()

    def image(self, f_hat: Tensor) -> Tensor:
        """Decode: images (B, 3, H, W) in 0..1, on the CPU."""
        return to_image(self.vae.decode(f_hat.to(self.device))).cpu()

    def record(self) -> Record:
        """Sample, to compare other devices with."""
        steps = [step for step, *_ in self.steps()]
        logits, tokens = [step.logits for step in steps], [step.tokens for step in steps]
        return Record(logits, tokens, steps[-1].f_hat, self.image(steps[-1].f_hat))


def moved(condition: Condition, device: torch.device | str) -> Condition:
    """The condition on another device."""
    if isinstance(condition, Labels):
        return Labels(condition.labels.to(device))
    positive = [row.to(device) for row in condition.positive]
    negative = condition.negative and [row.to(device) for row in condition.negative]
    source = condition.source
    return Text(positive, negative, source if source is None else source.to(device))


def compared(what: str, models: Models, record: Record, judge: bool = True) -> Line:
    """Whether the models give what was recorded; judge: if not, the differences are a figure."""
    top, choices = (models.settings.top_k, models.settings.top_p), models.model.token_kind.choices
    count, turned, margin, off = 0, 0, 0.0, 0.0
    for step, drawn, noise in models.steps(record.tokens):
        want = record.logits[step.scale.k]
        stride = max(step.logits.shape[1] // want.shape[1], 1)
        off = max(off, largest(step.logits[:, ::stride][:, : want.shape[1]], want))
        wrong = drawn != step.tokens
        count, turned = count + drawn.numel(), turned + int(wrong.sum())
        if wrong.any():
            logits = step.logits.unflatten(-1, (-1, choices))
            ours, theirs = (t.view(logits.shape[:-1]) for t in (drawn, step.tokens))
            margin = max(margin, margin_of(logits, noise, ours, theirs, *top))
    value = f"{turned} of {count} tokens turned" if turned else f"all {count} tokens equal"
    if turned and margin < float("inf"):
        value += f", near ties (within {margin:.0e})"
    image = models.image(record.f_hat)
    stride = image.shape[-1] // record.image.shape[-1]
    seen = largest(image[..., ::stride, ::stride], record.image)
    value += f"; logits off by {off:.0e}, image by {seen:.0e}"
    good = max(off, margin) <= TOLERANCE and seen <= TOLERANCE + record.step
    if not models.settings.more_smooth:  # which magnifies differences of logits a hundredfold
        far = largest(step.f_hat, record.f_hat)
        value, good = f"{value}, f_hat by {far:.0e}", good and far <= TOLERANCE
    numbers = {"equal": 1 - turned / count, "logits": off}
    return Line(what, ("pass" if good else "fail") if judge else "figure", value, numbers)


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; theirs may be on another device."""
    return (ours - theirs.to(ours)).abs().max().item()


def margin_of(
    logits: Tensor, noise: Tensor, ours: Tensor, theirs: Tensor, top_k: int, top_p: float
) -> float:
    """How far logits (B, ..., choices) must move for our tokens to become theirs, about.

    That covers ties in the noise, and at the edge of what top_k and top_p keep.
    """
    turned = ours != theirs
    for nudge in (TOLERANCE / 100, TOLERANCE / 10, TOLERANCE):
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
    return Record(logits, tokens, f_hat, image / 255, step=1 / 255)


def reference(card: Card) -> Iterator[Line]:
    """The recorded runs of the original implementations."""
    for path in sorted(REFERENCE.glob("*.json")):
        case = write_case(path.stem, card.scratch)
        for i in range(len(case.runs)):
            models = Models(job_of(case, i), torch.device(card.device))
            record = record_of(case, i, models)
            yield compared(f"{case.name}, run {i}", models, record)
            if card.device.startswith("cuda") and "labels" in case.about:
                with torch.backends.cudnn.flags(allow_tf32=True):  # as in ComfyUI
                    yield compared(f"{case.name}, run {i}, TF32", models, record, judge=False)


def octopuses(*methods: Method) -> Job:
    """Eight images of the included model."""
    text = Text(load_text_encoder(included.TEXT_ENCODER)(["octopus"])).repeat(8)
    return Job(included.MODEL, included.VAE, text, partial(PerImage, range(8)), methods=methods)


def spectral(card: Card) -> Iterator[Line]:
    """SSR and SAR against the CPU."""
    job = octopuses(PAPER)
    record = Models(job, CPU).record()
    yield compared("octopuses, SSR + SAR", Models(job, torch.device(card.device)), record)


def included_model(card: Card) -> Iterator[Line]:
    """The included model against the CPU, as it is drawn in every type."""
    job = octopuses()
    record = Models(job, CPU).record()
    rows = [("float32, CPU", record.image)]
    for name, dtype in TYPES.items():
        models = Models(job, torch.device(card.device), dtype)
        exact = dtype == torch.float32
        line = compared(f"octopuses, {name}", models, record, judge=exact)
        yield line
        *how, seeds = models.condition, models.schedule, models.settings, range(8)
        steps = list(sample(models.model, models.vae, *how, seeds))
        pairs = zip(steps, record.tokens, strict=True)
        equal = torch.cat([(step.tokens.cpu() == tokens).flatten() for step, tokens in pairs])
        share = equal.float().mean().item()
        # one token that turns, at a near tie, changes all that are drawn after it
        result = "pass" if share == 1 or line.numbers["equal"] < 1 else "fail"
        shown = f"{share:.1%} of the tokens equal"
        yield Line(f"octopuses, {name}, drawn", result if exact else "figure", shown)
        rows.append((name, models.image(steps[-1].f_hat)))
        to_pil(captioned_rows(rows)).save(card.pictures)


CHECKS = {"reference cases": reference, "SSR + SAR": spectral, "included model": included_model}
