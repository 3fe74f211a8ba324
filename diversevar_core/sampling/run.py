"""The state of a batch between maps, and the interface of methods that change how it is sampled.

``Run`` is a batch between two maps, ``Step`` the result of one map, ``Context`` a batch before its
first map, and ``Method`` the base class of all methods. ``Method.begin`` takes the context and
returns the method for this batch; the other hooks are called during sampling, and a method
overrides those that it needs. A method keeps no state from one batch to the next.

Methods are sorted by ``order``: FastVAR (-1), ScaleKV (0), text noise (1), SSR and SAR (2), kept
tokens (3), adaptive scaling (4), repulsion (5), path search (6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..conditions import Condition
from ..errors import UserError
from ..models.family import State
from ..schedule import Scale, Schedule
from ..settings import Guidance


class Step(NamedTuple):
    """The result of one map."""

    scale: Scale
    logits: Tensor  # (B, n, channels) after guidance and temperature
    tokens: Tensor  # (B, n), or bits (B, n, bits)
    f_hat: Tensor  # (B, D, H, W), the sum so far


@dataclass
class Run:
    """A batch between two maps."""

    state: State  # of the model, with the keys and values of the maps so far
    condition: Condition | None = None  # the one that is set in the state
    f_hat: Tensor | None = None  # (B, D, H, W)
    features: Tensor | None = None  # (B, n, D), the next map's input

    def fork(self) -> Run:
        """A copy that goes on without changing this one; see ``KVCache.fork``."""
        return replace(self, state=self.state.fork())

    def drop_unconditional(self) -> None:
        """Stop guidance for the maps that follow."""
        self.state.drop_unconditional()
        self.condition = None


Advance = Callable[[Run, Scale, Guidance], tuple[Run, Step]]
"""A function that draws one map from a ``Run``, and uses it up: returns the next ``Run``."""


@dataclass(frozen=True, eq=False)
class Context:
    """A batch before its first map, or one image of it with ``exact_batch``."""

    schedule: Schedule
    places: Sequence[int]  # indices of these images in the whole batch
    seeds: Sequence[int]  # of these images
    condition: Condition
    plan: Sequence[Guidance]  # of each map that is drawn: the schedule's first ones, mostly all
    choices: int  # of a token; of a bit, 2
    depth: int  # blocks of the model


class Method:
    """The base class: it changes nothing, as every hook returns its argument."""

    together = False  # whether the images of a batch must be computed together
    order = 0  # methods with lower numbers act first
    alike = True  # whether it does the same to every image of a batch
    cached = 1.0  # share of the keys and values that is kept from map to map
    name = ""  # of its node; a chain has at most one method of each name
    pushes = ""  # its settings, in words, that can make numbers overflow when they are too high

    def drawn(self, schedule: Schedule) -> int:
        """How many of a schedule's maps are drawn, counted from the first."""
        return len(schedule)

    def stored(self, schedule: Schedule, depth: int) -> int:
        """How many tokens' features (C,), float32, it stores for every row while it acts."""
        return 0

    def begin(self, context: Context) -> Method:
        """The method for this batch. Raises UserError if the method does not fit it."""
        return self

    def text(self, condition: Condition, scale: Scale) -> Condition:
        """The condition of one map. Return the same object where it is unchanged, to save time."""
        return condition

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        """The input (rows, n, C), float32, before the scale and position embeddings are added."""
        return x

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's input feature map (rows, n, C), float32."""
        return x

    def block(self, run: Callable[..., Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        """Block i on one map: call ``run`` on (rows, n, C) and return its output.

        The method that acts first may call it on some tokens only, with their indices (rows, m).
        """
        return run(x)

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's output feature map (rows, n, C), float32."""
        return x

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        """Logits (B, n, channels) after guidance and temperature."""
        return logits

    def draw(
        self, choose: Callable[..., Tensor], scale: Scale, logits: Tensor, first: int = 0
    ) -> Tensor:
        """Draw tokens (B, n, m) from logits (B, n, m, choices): m bits, or one codebook index.

        ``choose`` draws, with the same random numbers at every call. It can be called with some
        images only: ``first`` is the index of the first of them.
        """
        return choose(logits, first)

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        """The drawn tokens (B, n) or bits (B, n, bits)."""
        return tokens

    def step(self, advance: Advance, run: Run, scale: Scale, at: Guidance) -> tuple[Run, Step]:
        """One whole map: call ``advance`` on ``run``, or several times on forks of it."""
        return advance(run, scale, at)


def check_methods(methods: Sequence[Method]) -> None:
    """Raise UserError if two methods have the same name."""
    names = [method.name for method in methods if method.name]
    for name in names:
        if names.count(name) > 1:
            raise once(name)


def once(name: str) -> UserError:
    """The error to raise where a chain has two methods of one kind."""
    return UserError(f"{name} is connected twice, and can act only once; remove one of them.")


def drawn_maps(schedule: Schedule, methods: Sequence[Method]) -> Schedule:
    """The maps that are drawn with these methods."""
    return schedule[: min([len(schedule), *(method.drawn(schedule) for method in methods)])]
