"""Diverse starts: the seeds whose first maps differ most.

The first, small maps decide the idea and cost next to nothing, so many seeds are drawn through
them only, and those that lie farthest apart are finished, each as it would be alone. Ours; the
choice is the greedy k-center of Gonzalez, 1985, kept from outliers (``most_different``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.diversity import most_different
from ..models.family import Family
from ..models.resize import area
from ..sampling.conditions import Condition
from ..sampling.run import Method, Step
from ..sampling.sampler import sample
from ..sampling.schedule import Schedule
from ..sampling.settings import Settings
from ..vae.tokenizer import Tokenizer

TOGETHER = 16  # candidates drawn at once; they need room for the first maps only


def small_map(step: Step) -> Tensor:
    """What a start is compared by: f_hat at the size of its last map, (B, D * h * w)."""
    return area(step.f_hat, step.scale.h, step.scale.w).flatten(1)


@dataclass(frozen=True)
class Starts:
    """How starts are chosen.

    candidates: seeds that are drawn, 1 is off. side: up to which map. compare: features (B, C) of
    the last step of a group of candidates, whose cosines say how near they lie. tokenizer: what
    ``compare`` decodes with, where it does.
    """

    candidates: int = 64
    side: int = 6
    compare: Callable[[Step], Tensor] = small_map
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.side < 1:
            raise ValueError(
                "Diverse starts need 1 candidate or more and a side of 1 or more; "
                f"not {self.candidates} and {self.side}."
            )

    def chooses(self, count: int) -> bool:
        """Whether there is something to choose for so many images."""
        return 1 < count < self.candidates


def choose_starts(
    starts: Starts,
    count: int,
    model: Family,
    tokenizer: Tokenizer,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    methods: Sequence[Method] = (),
    progress: Callable[[int], None] = lambda done: None,
    ready: Callable[[], object] = lambda: None,
) -> list[int]:
    """``count`` seeds, ascending, from ``seed`` on whose starts lie far from each other.

    condition: of all images, which show the same; its first is taken. Methods that act on a batch
    together are left out, as the other images are not known yet. progress: called after each
    group with the number of candidates drawn so far. ready: has the models where they compute,
    before each group. With ``count`` candidates or fewer, or for one image, there is nothing to
    choose: the first seeds. Raises ValueError where ``starts`` compares with another model's
    tokenizer.
    """
    if not starts.chooses(count):
        return list(range(seed, seed + count))
    if starts.tokenizer is not None and starts.tokenizer.token_kind != tokenizer.token_kind:
        raise ValueError(
            f"Diverse starts would decode small images with {starts.tokenizer.name}'s tokenizer "
            f"({starts.tokenizer.token_kind}), and this model's has {tokenizer.token_kind}; "
            "connect the same tokenizer to both."
        )
    candidates = range(seed, seed + starts.candidates)
    alone = [method for method in methods if not method.together]
    maps = max(1, sum(scale.side <= starts.side for scale in schedule))
    found = []
    for first in range(0, len(candidates), TOGETHER):
        seeds = candidates[first : first + TOGETHER]
        models = (model, tokenizer, condition.repeat(len(seeds)))
        ready()
        *_, last = sample(*models, schedule, settings, seeds, methods=alone, maps=maps)
        found.append(starts.compare(last))
        progress(first + len(seeds))
    return [candidates[i] for i in most_different(torch.cat(found), count)]
