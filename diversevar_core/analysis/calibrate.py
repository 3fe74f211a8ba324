"""Calibrate a model: find the preset with the most diversity at nearly the published alignment.

Each candidate preset is measured on a few prompts and seeds. No other model is needed: diversity is
the distance between the images' pixels (or other features), and how well images follow their
prompts is judged by the model's own likelihood (``judge.py``).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..conditions import Condition
from ..diversity import mean_distance, pixel_features
from ..errors import UserError, quote
from ..job import Chain, draw
from ..models.family import Family
from ..presets import PRESETS, Preset
from ..vae.autoencoder import to_image
from ..vae.vae import VAE
from .judge import self_alignment

CANDIDATES = (
    Preset(),
    PRESETS["SSR + SAR (DiverseVAR)"],
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
LOSS = 0.1  # of the published alignment, which the chosen preset may lose
TIE = 0.05  # relative difference of diversity that a few prompts and seeds cannot show


@dataclass(frozen=True)
class Measured:
    """A preset's measurements, one number per prompt.

    diversity: mean cosine distance; alignment, likelihood: nats per image, see ``judge.py``.
    """

    preset: Preset
    diversity: list[float]
    alignment: list[float]
    likelihood: list[float]


@dataclass(frozen=True)
class Task:
    """What to measure, at the model's own size and settings: a condition per prompt.

    seeds: images per prompt. features: images (B, 3, H, W) in 0..1 -> (B, C), for diversity.
    """

    model: Family
    vae: VAE
    conditions: Sequence[Condition]
    seeds: int = 6
    features: Callable[[Tensor], Tensor] = pixel_features


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not empty; UserError if there are none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("There are no prompts; write a few, one per line.")
    return lines


def labels_of(lines: Sequence[str]) -> list[int]:
    """The class labels in lines of text; UserError if a line is not one."""
    if not all(line.isdecimal() and len(line) < 10 for line in lines):
        raise UserError("This model takes classes; write their numbers, one per line.")
    return [int(line) for line in lines]


def measure(
    task: Task, preset: Preset, ready: Callable[[Chain], None]
) -> Iterator[tuple[float, float, float]]:
    """Yield diversity, alignment and likelihood of each prompt under a preset.

    ready: loads the models to the device; called before they compute, with the preset's chain.
    """
    schedule, chain = task.model.schedule(), preset.chain()
    settings = preset.settings(task.model.defaults())
    for i, condition in enumerate(task.conditions):
        models = (task.model, task.vae, condition.repeat(task.seeds), schedule)
        drawn = draw(*models, settings, 1000 * i, chain, ready=partial(ready, chain))
        steps = list(drawn.steps)
        with torch.no_grad():  # one by one, as decoding a million pixels takes gigabytes
            decoded = [task.vae.decode(f_hat) for f_hat in steps[-1].f_hat.split(1)]
        images = to_image(torch.cat(decoded))
        judged = self_alignment(*models[:2], [step.tokens for step in steps], *models[2:])
        distance = mean_distance(task.features(images))
        yield distance, judged.alignment.mean().item(), judged.likelihood.mean().item()


def calibrate(
    task: Task,
    path: Path,
    candidates: Sequence[Preset] = CANDIDATES,
    ready: Callable[[Chain], None] = lambda chain: None,
) -> Iterator[tuple[list[Measured], float]]:
    """Measure every candidate; save the measurements and the choice at the end.

    ready: loads the models to the device, called before they compute. Yields what is measured so
    far, and the share of the work that is done, after every prompt. Raises UserError if the file
    cannot be written.
    """
    measured, total = [], len(candidates) * len(task.conditions)
    for preset in candidates:
        prompts = []
        for figures in measure(task, preset, ready):
            prompts.append(figures)
            yield measured, (len(measured) * len(task.conditions) + len(prompts)) / total
        measured.append(Measured(preset, *map(list, zip(*prompts, strict=True))))
    save(path, measured, choose(measured))
    yield measured, 1.0


def save(path: Path, measured: Sequence[Measured], chosen: Measured) -> None:
    """Write a calibration; a reader sees all of it or what was there before."""
    content = {"chosen": asdict(chosen.preset), "measured": [asdict(m) for m in measured]}
    draft = path.with_name(f"{secrets.token_hex(8)}.part")  # several processes may write at once
    try:
        try:
            draft.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The calibration cannot be saved to {quote(path)} ({error}).") from error


def choose(measured: Sequence[Measured]) -> Measured:
    """The preset with the most diversity of those that follow prompts nearly as published.

    measured: the first is the model as published. The others may lose the share ``LOSS`` of its
    alignment, and as many nats of its likelihood. Among presets whose diversity differs by less
    than ``TIE``, the one with the best alignment is chosen.
    """
    alignment, likelihood = fmean(measured[0].alignment), fmean(measured[0].likelihood)
    loss = LOSS * abs(alignment)
    good = [
        m
        for m in measured
        if fmean(m.alignment) >= alignment - loss and fmean(m.likelihood) >= likelihood - loss
    ]
    most = max(fmean(m.diversity) for m in good)
    tied = [m for m in good if fmean(m.diversity) >= (1 - TIE) * most]
    return max(tied, key=lambda m: fmean(m.alignment))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts."""
    numbers = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = numbers[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double())
    return low.item(), high.item()
