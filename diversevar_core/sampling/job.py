"""One batch, from its first seed to its last map: seeds, sampling and travel, for every caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..methods.starts import Starts, choose_starts
from ..methods.travel import sample_and_travel
from ..models.family import Family
from ..vae.tokenizer import Tokenizer
from .conditions import Condition
from .run import Method, Step, drawn_maps, once
from .schedule import Schedule
from .settings import Settings


@dataclass(frozen=True)
class Chain:
    """What a job does besides its settings.

    methods: what acts on its maps, one of a kind. starts: how its seeds are chosen; None takes
    one after the other. travel: the side up to which maps of the finished images are kept while
    the others are drawn again (``sample_and_travel``); None and 0 draw once.
    """

    methods: tuple[Method, ...] = ()
    starts: Starts | None = None
    travel: int | None = None

    def __post_init__(self) -> None:
        if self.travel is not None and self.travel < 0:
            raise ValueError(
                f"Scale travel keeps maps up to a side of 0 or more, not {self.travel}."
            )

    def add(self, method: Method) -> Chain:
        """The chain and one method more."""
        return replace(self, methods=(*self.methods, method))

    def with_starts(self, starts: Starts) -> Chain:
        """The chain, its seeds chosen; ValueError where they are already."""
        if self.starts is not None:
            raise once("Diverse Seeds")
        return replace(self, starts=starts)

    def with_travel(self, side: int) -> Chain:
        """The chain, drawn again from a side on; ValueError where it is already."""
        if self.travel is not None:
            raise once("Scale Travel")
        return replace(self, travel=side)


PLAIN = Chain()


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
    chain: Chain = PLAIN,
    *,
    shared: bool = False,
    exact_batch: bool = False,
    ready: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Draw:
    """Choose the seeds, from ``seed`` on; the images are drawn as the steps are taken.

    ready: has the models where they compute; called before every group of candidates and before
    the images, as comparing candidates may put other models in their place. progress: called with
    the number of candidates drawn so far. Others as for ``sample``. Raises ValueError where there
    are seeds to choose and the images do not show the same.
    """
    count = len(condition)
    seeds = list(range(seed, seed + count))
    if chain.starts and chain.starts.chooses(count):
        if shared:
            raise ValueError(
                "Diverse starts are seeds of their own, and with a shared stream only the first "
                "counts; set starts to 1, or draw each image from its own seed."
            )
        if not (condition.alike and all(method.alike for method in chain.methods)):
            raise ValueError(
                "Diverse starts compare images of the same, and here each has a prompt, class, "
                "image or mask of its own; set starts to 1, or give one for the whole batch."
            )
        how = (model, tokenizer, condition, schedule, settings)
        seeds = choose_starts(chain.starts, count, *how, seed, chain.methods, progress, ready)
    seeds = [seed % 2**64 for seed in seeds]  # as they are drawn with
    ready()
    steps = sample_and_travel(
        model,
        tokenizer,
        condition,
        schedule,
        settings,
        seeds,
        chain.methods,
        chain.travel or 0,
        shared=shared,
        exact_batch=exact_batch,
    )
    return Draw(seeds, drawn_maps(schedule, chain.methods) * (2 if chain.travel else 1), steps)
