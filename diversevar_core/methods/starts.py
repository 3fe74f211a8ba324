"""Diverse starts: choose the seeds whose first maps differ most.

The first, small maps decide what an image shows and take little time. So the first maps of many
seeds are drawn, and only the seeds that differ most are finished; their images are the same as
without the choice. This pack's own method; the choice is greedy k-center (Gonzalez, 1985) with a
correction for outliers (``most_different``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import Condition
from ..diversity import most_different
from ..errors import check_range
from ..models.family import Family
from ..resize import area
from ..sampling.method import Method, Step
from ..sampling.pairing import check_pair
from ..sampling.sampler import sample
from ..schedule import Schedule
from ..settings import Settings
from ..vae.vae import VAE

TOGETHER = 16  # candidates drawn at once; they need memory for the first maps only


def small_map(step: Step) -> Tensor:
    """The features to compare: f_hat at the size of the step's map, (B, D * h * w)."""
    return area(step.f_hat, step.scale.h, step.scale.w).flatten(1)


@dataclass(frozen=True)
class Starts:
    """How starts are chosen.

    candidates: number of seeds to draw, 1 is off. side: of the last map that is drawn. compare:
    the last step of a group -> features (B, C), which are compared by cosine similarity.
    vae: the one that ``compare`` decodes with, if it does.
    """

    candidates: int = 64
    side: int = 6
    compare: Callable[[Step], Tensor] = small_map
    vae: VAE | None = None

    def __post_init__(self) -> None:
        check_range("candidates", self.candidates, 1)
        check_range("side", self.side, 1)

    def chooses(self, count: int) -> bool:
        """Whether there are more candidates than images, and more than one image."""
        return 1 < count < self.candidates


def choose_starts(
    starts: Starts,
    count: int,
    model: Family,
    vae: VAE,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    methods: Sequence[Method] = (),
    progress: Callable[[int], None] = lambda done: None,
    ready: Callable[[], object] = lambda: None,
) -> list[int]:
    """Choose ``count`` seeds, ascending, from ``seed`` on, whose first maps differ most.

    condition: of all images; its first image's is used. Methods that act on the whole batch
    (``together``) are not used, as the batch is not known yet. progress: called after each group
    with the number of candidates drawn so far. ready: called before each group, to load the models
    to the device. Where ``starts.chooses(count)`` is false, the result is the first seeds. Raises
    UserError if ``starts.vae`` is not the model's.
    """
    if not starts.chooses(count):
        return list(range(seed, seed + count))
    if starts.vae is not None:
        check_pair(model, starts.vae)
    candidates = range(seed, seed + starts.candidates)
    alone = [method for method in methods if not method.together]
    maps = max(1, sum(scale.side <= starts.side for scale in schedule))
    features = []
    for first in range(0, len(candidates), TOGETHER):
        seeds = candidates[first : first + TOGETHER]
        models = (model, vae, condition.repeat(len(seeds)))
        ready()
        *_, last = sample(*models, schedule, settings, seeds, methods=alone, maps=maps)
        features.append(starts.compare(last))
        progress(first + len(seeds))
    return [candidates[i] for i in most_different(torch.cat(features), count)]
