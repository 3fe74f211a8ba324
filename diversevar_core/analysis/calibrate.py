"""Find the strengths that suit a model: diversity against what the model says of itself.

A few prompts and seeds on a candidates of strengths. No other model is needed: how different images
are is seen in their pixels (or in features that are given), and how well they follow their prompts
is the model's own judgement (``judge.py``).
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.files import CheckpointError, read_object
from ..models.family import Family
from ..quote import quote
from ..sampling.conditions import Condition
from ..sampling.job import Chain, draw
from ..sampling.presets import PRESETS, Preset, preset_of
from ..sampling.schedule import Schedule
from ..sampling.settings import Settings
from ..vae.autoencoder import to_image
from ..vae.tokenizer import Tokenizer
from .diversity import mean_distance, pixel_features
from .judge import self_alignment

CANDIDATES = (
    Preset(),
    PRESETS["SSR + SAR as in the paper"],
    Preset(guidance_start=2),
    Preset(guidance_start=4),
    Preset(guidance_start=6),
    Preset(guidance_start=4, starts=64),
    Preset(guidance_start=4, starts=256),
    Preset(guidance_start=4, repulsion=2.0),
    Preset(guidance_start=4, repulsion=4.0),
    Preset(guidance_start=4, repulsion=8.0),
)
RESAMPLES = 2000
TIE = 0.05  # share of diversity that a few prompts and seeds cannot tell apart


@dataclass(frozen=True)
class Measured:
    """One preset as measured, a number a prompt: distance of images, nats an image."""

    preset: Preset
    diversity: list[float]
    alignment: list[float]
    likelihood: list[float]


@dataclass(frozen=True)
class Task:
    """What is measured: the models, a condition for every prompt, the seeds of each.

    features: images (B, 3, H, W) in 0..1 -> (B, C).
    """

    model: Family
    tokenizer: Tokenizer
    conditions: Sequence[Condition]
    schedule: Schedule
    settings: Settings
    seeds: int = 6
    features: Callable[[Tensor], Tensor] = pixel_features


def measure(
    task: Task, preset: Preset, ready: Callable[[Chain], None]
) -> Iterator[tuple[float, float, float]]:
    """Diversity, alignment and likelihood of every prompt under a preset.

    ready: called before the models compute, with what the preset stands for. ValueError where
    a number is not finite.
    """
    settings, chain = preset.settings(task.settings), preset.chain()
    for i, condition in enumerate(task.conditions):
        models = (task.model, task.tokenizer, condition.repeat(task.seeds), task.schedule)
        drawn = draw(*models, settings, 1000 * i, chain, ready=partial(ready, chain))
        steps = list(drawn.steps)
        with torch.no_grad():  # one by one: a decoder needs gigabytes for a million pixels
            decoded = [task.tokenizer.decode(one) for one in steps[-1].f_hat.split(1)]
        images = to_image(torch.cat(decoded))
        judged = self_alignment(*models[:2], [step.tokens for step in steps], *models[2:])
        distance = mean_distance(task.features(images))
        found = distance, judged.alignment.mean().item(), judged.likelihood.mean().item()
        if not all(map(math.isfinite, found)):
            raise ValueError(
                f"With {preset} what the model says of prompt {i + 1} is NaN or infinite; its "
                "weights or a LoRA's are broken, or their type is too narrow."
            )
        yield found


def calibrate(
    task: Task,
    path: Path,
    about: dict[str, object],
    candidates: Sequence[Preset] = CANDIDATES,
    ready: Callable[[Chain], None] = lambda chain: None,
) -> Iterator[tuple[list[Measured], float]]:
    """Measure every candidate that ``path`` does not hold yet, save it, and at last the choice.

    about: what the figures depend on, as JSON, saved with them; where the file's differs, it starts
    over. ready: called before the models compute, as ``features`` may have taken their place.
    Yields what is measured so far and the share of the work that is done, after every prompt. A
    file that says all of it already is left as it is.
    """
    before = saved_at(path)
    known = {one.preset: one for one in measured_of(before, about, len(task.conditions))}

    def measured() -> list[Measured]:
        return [known[preset] for preset in candidates if preset in known]

    done, total = len(measured()) * len(task.conditions), len(candidates) * len(task.conditions)
    for preset in candidates:
        if preset in known:
            continue
        found = []
        for numbers in measure(task, preset, ready):
            found.append(numbers)
            done += 1
            yield measured(), done / total
        known[preset] = Measured(preset, *map(list, zip(*found, strict=True)))
        write(path, content(about, measured(), None))
    finished = content(about, measured(), choose(measured()))
    if finished != before:
        write(path, finished)
    yield measured(), 1.0


def saved_at(path: Path) -> dict[str, object]:
    """What a calibration's file holds; nothing where there is none that can be read."""
    try:
        return read_object(path)
    except CheckpointError:
        return {}


def measured_of(saved: dict[str, object], about: dict[str, object], prompts: int) -> list[Measured]:
    """What a file that was written for the same ``about`` has measured, but for broken entries."""
    if saved.get("about") != about or not isinstance(saved.get("measured"), list):
        return []
    measured = []
    for one in saved["measured"]:
        try:
            preset, *figures = (one[field.name] for field in fields(Measured))
            measured.append(
                Measured(preset_of(preset), *(a_prompt(values, prompts) for values in figures))
            )
        except (KeyError, TypeError, ValueError):
            continue
    return measured


def a_prompt(values: object, prompts: int) -> list[float]:
    """The list itself; ValueError or TypeError where it is not a finite number a prompt."""
    if (
        not isinstance(values, list)
        or len(values) != prompts
        or not all(map(math.isfinite, values))
    ):
        raise ValueError(f"{quote(values)} is not a number a prompt")
    return values


def content(
    about: dict[str, object], measured: Sequence[Measured], chosen: Measured | None
) -> dict[str, object]:
    """What is saved."""
    saved = {"chosen": chosen and asdict(chosen.preset), "about": about}
    return saved | {"measured": [asdict(one) for one in measured]}


def write(path: Path, saved: dict[str, object]) -> None:
    """Save what is measured, whole or not at all; ValueError where the folder cannot be written to.

    The draft's name is its own: several may write at once, and the last one's stays.
    """
    draft = path.with_name(f"{secrets.token_hex(8)}.part")
    try:
        try:
            draft.write_text(json.dumps(saved, indent=1) + "\n")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"The calibration cannot be saved to {quote(path)} ({error}).") from error


def choose(measured: Sequence[Measured], tolerance: float = 0.1) -> Measured:
    """The most different one that follows the prompts nearly as well as the published settings.

    The first is the published setting. Another may lose ``tolerance`` of its alignment, and of its
    likelihood as much again in nats. Of those that differ as much, within TIE, it is the one that
    follows best. All numbers are finite.
    """
    alignment, likelihood = mean(measured[0].alignment), mean(measured[0].likelihood)
    loss = tolerance * abs(alignment)
    good = [
        one
        for one in measured
        if mean(one.alignment) >= alignment - loss and mean(one.likelihood) >= likelihood - loss
    ]
    most = max(mean(one.diversity) for one in good)
    tied = [one for one in good if mean(one.diversity) >= (1 - TIE) * most]
    return max(tied, key=lambda one: mean(one.alignment))


def mean(values: Sequence[float]) -> float:
    """Of a number a prompt."""
    return sum(values) / len(values)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts."""
    numbers = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = numbers[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double())
    return low.item(), high.item()
