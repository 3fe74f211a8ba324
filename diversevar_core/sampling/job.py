"""One batch, from its first seed to its last map: seeds, sampling and travel, for every caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..methods.starts import Starts, choose_starts
from ..methods.travel import Travel, sample_and_travel
from ..models.family import Family
from ..sampling.run import Method, drawn_maps
from ..vae.tokenizer import Tokenizer
from .conditions import Condition
from .run import Step
from .schedule import Schedule
from .settings import Settings


class Draw(NamedTuple):
    """A batch that is ready to be drawn."""

    seeds: list[int]  # of every image, 0 to 2**64 - 1
    maps: Schedule  # that ``steps`` yields one after the other; twice where it travels
    steps: Iterator[Step]


def draw(
    model: Family,
    tokenizer: Tokenizer,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    methods: Sequence[Method] = (),
    *,
    shared: bool = False,
    exact_batch: bool = False,
    ready: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Draw:
    """Choose the seeds, from ``seed`` on; the images are drawn as the steps are taken.

    ready: has the models where they compute; called before every group of candidates and before
    the images, as comparing candidates may put other models in their place. progress: told how
    many candidates are drawn. Others as for ``sample``. Raises ValueError where there are seeds to
    choose and the images do not show the same.
    """
    count = len(condition)
    starts = next((method for method in methods if isinstance(method, Starts)), Starts(1))
    seeds = list(range(seed, seed + count))
    if starts.chooses(count):
        if shared:
            raise ValueError(
                "Diverse starts are seeds of their own, and with a shared stream only the first "
                "counts; set starts to 1, or draw each image from its own seed."
            )
        if not (condition.alike and all(method.alike for method in methods)):
            raise ValueError(
                "Diverse starts compare images of the same, and here each has a prompt, class, "
                "image or mask of its own; set starts to 1, or give one for the whole batch."
            )
        how = (model, tokenizer, condition, schedule, settings)
        seeds = choose_starts(starts, count, *how, seed, methods, progress, ready)
    seeds = [seed % 2**64 for seed in seeds]  # as they are drawn with
    travels = any(isinstance(method, Travel) for method in methods)
    ready()
    steps = sample_and_travel(
        model,
        tokenizer,
        condition,
        schedule,
        settings,
        seeds,
        methods,
        shared=shared,
        exact_batch=exact_batch,
    )
    return Draw(seeds, drawn_maps(schedule, methods) * (1 + travels), steps)
