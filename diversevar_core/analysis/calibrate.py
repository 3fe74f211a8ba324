"""Calibrate a model: find the preset with the most diversity at nearly the published alignment.

Each candidate preset is measured on a few prompts and seeds. No other model is needed: diversity is
the distance between the images' pixels (or given features), and how well images follow their
prompts is judged by the model's own likelihood (``judge.py``).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..checkpoints.files import CheckpointError, read_object
from ..conditions import Condition
from ..diversity import mean_distance, pixel_features
from ..errors import UserError, quote
from ..job import Chain, draw
from ..models.family import Family
from ..presets import PRESETS, Preset, preset_of
from ..schedule import Schedule
from ..settings import Settings
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
    """What to measure with: models, a condition per prompt, the number of seeds per prompt.

    features: images (B, 3, H, W) in 0..1 -> (B, C), for diversity.
    """

    model: Family
    vae: VAE
    conditions: Sequence[Condition]
    schedule: Schedule
    settings: Settings
    seeds: int = 6
    features: Callable[[Tensor], Tensor] = pixel_features


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
    Raises UserError if a number is not finite.
    """
    settings, chain = preset.settings(task.settings), preset.chain()
    for i, condition in enumerate(task.conditions):
        models = (task.model, task.vae, condition.repeat(task.seeds), task.schedule)
        drawn = draw(*models, settings, 1000 * i, chain, ready=partial(ready, chain))
        steps = list(drawn.steps)
        with torch.no_grad():  # one by one, as decoding a million pixels takes gigabytes
            decoded = [task.vae.decode(one) for one in steps[-1].f_hat.split(1)]
        images = to_image(torch.cat(decoded))
        judged = self_alignment(*models[:2], [step.tokens for step in steps], *models[2:])
        distance = mean_distance(task.features(images))
        found = distance, judged.alignment.mean().item(), judged.likelihood.mean().item()
        if not all(map(isfinite, found)):
            raise UserError(
                f"With {preset} the likelihood of prompt {i + 1} is NaN or infinite; the weights "
                "of the model or of a LoRA are broken, or their type is too narrow."
            )
        yield found


def calibrate(
    task: Task,
    path: Path,
    about: dict[str, object],
    candidates: Sequence[Preset] = CANDIDATES,
    ready: Callable[[Chain], None] = lambda chain: None,
) -> Iterator[tuple[list[Measured], float]]:
    """Measure every candidate that is not in the file ``path`` yet; save each, and the choice.

    about: what the figures depend on, as JSON values, saved with them; where the file's differs,
    all is measured again. ready: loads the models to the device, called before they compute. Yields
    what is measured so far, and the share of the work that is done, after every prompt. A file
    that is complete already is not written again.
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
    """The contents of a calibration file; empty where it is missing or cannot be read."""
    try:
        return read_object(path)
    except CheckpointError:
        return {}


def measured_of(saved: dict[str, object], about: dict[str, object], prompts: int) -> list[Measured]:
    """The valid measurements in a file's contents; none where its ``about`` differs."""
    if saved.get("about") != about or not isinstance(saved.get("measured"), list):
        return []
    measured = []
    for one in saved["measured"]:
        try:
            preset, *figures = (one[field.name] for field in fields(Measured))
            if all(
                isinstance(values, list) and len(values) == prompts and all(map(isfinite, values))
                for values in figures
            ):
                measured.append(Measured(preset_of(preset), *figures))
        except (KeyError, TypeError, ValueError):
            continue
    return measured


def content(
    about: dict[str, object], measured: Sequence[Measured], chosen: Measured | None
) -> dict[str, object]:
    """The contents to save."""
    saved = {"chosen": chosen and asdict(chosen.preset), "about": about}
    return saved | {"measured": [asdict(one) for one in measured]}


def write(path: Path, saved: dict[str, object]) -> None:
    """Save a calibration atomically; UserError if the folder cannot be written to.

    The temporary file has a random name, so that several processes can write at once.
    """
    draft = path.with_name(f"{secrets.token_hex(8)}.part")
    try:
        try:
            draft.write_text(json.dumps(saved, indent=1) + "\n")
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
        one
        for one in measured
        if fmean(one.alignment) >= alignment - loss and fmean(one.likelihood) >= likelihood - loss
    ]
    most = max(fmean(one.diversity) for one in good)
    tied = [one for one in good if fmean(one.diversity) >= (1 - TIE) * most]
    return max(tied, key=lambda one: fmean(one.alignment))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts."""
    numbers = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = numbers[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double())
    return low.item(), high.item()
