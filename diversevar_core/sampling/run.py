"""What a map hands to the next, and what may be changed while an image is sampled.

``Run`` is a batch in flight, ``Step`` what one map left behind, ``Context`` what is about to be
sampled, and ``Method`` the interface of all methods. ``begin`` is given the context and returns the
method that acts on it, which sees the text, each map's input, each block, the output, the logits,
the draw and the drawn tokens, may run whole maps from a saved state, and overrides what it needs.
It keeps no state that outlives an image.

Methods act in the order of their ``order``, however they are given: FastVAR (-1), ScaleKV (0), text
noise (1), SSR and SAR (2), kept tokens (3), adaptive scaling (4), repulsion (5), path search (6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..models.family import State
from .conditions import Condition
from .schedule import Scale, Schedule
from .settings import Guidance


class Step(NamedTuple):
    """What one map left behind."""

    scale: Scale
    logits: Tensor  # (B, n, channels) after guidance and temperature
    tokens: Tensor  # (B, n), or bits (B, n, bits)
    f_hat: Tensor  # (B, D, H, W), the sum so far


@dataclass
class Run:
    """One batch of images in flight: all that a map hands to the next."""

    state: State  # the model's: keys and values of the maps so far
    condition: Condition | None = None  # that the state was given
    f_hat: Tensor | None = None  # (B, D, H, W)
    features: Tensor | None = None  # (B, n, D), the next map's input

    def fork(self) -> Run:
        """A copy that goes on without changing this one; ``KVCache.fork`` says how."""
        return replace(self, state=self.state.fork())

    def drop_unconditional(self) -> None:
        """Go on without guidance."""
        self.state.drop_unconditional()
        self.condition = None


@dataclass(frozen=True, eq=False)
class Context:
    """The images that are about to be sampled together."""

    schedule: Schedule
    places: Sequence[int]  # of these images in the whole batch
    seeds: Sequence[int]  # of these images
    condition: Condition
    plan: Sequence[Guidance]  # of every map that is drawn: the schedule's first ones, mostly all
    choices: int  # a token, or a bit: 2
    depth: int  # blocks of the model


class Method:
    """Changes nothing; every hook returns what it was given."""

    together = False  # whether the images of a batch must be computed together
    order = 0  # of several methods, lower ones act first
    alike = True  # whether it does the same to every image of a batch
    cached = 1.0  # share of the keys and values that is kept from map to map
    name = ""  # its node's; a chain has one of a name
    pushes = ""  # strengths that multiply what they meet, in words: too large, numbers overflow

    def drawn(self, schedule: Schedule) -> int:
        """How many of a schedule's maps are drawn, from the first on."""
        return len(schedule)

    def begin(self, context: Context) -> Method:
        """What acts on these images. Raises ValueError where the method does not fit them."""
        return self

    def text(self, condition: Condition, scale: Scale) -> Condition:
        """The condition of one map; the same object keeps what was computed from it."""
        return condition

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        """What the map is about (rows, n, C), float32, before it is told its scale and places."""
        return x

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's input feature map (rows, n, C), float32."""
        return x

    def block(self, run: Callable[..., Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        """Block i on one map: call ``run`` on (rows, n, C) and return its output.

        The first method may call it on some of the tokens, and their places (rows, m) in the map.
        """
        return run(x)

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's output feature map (rows, n, C), float32."""
        return x

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        """Guided, tempered logits (B, n, channels)."""
        return logits

    def draw(
        self, choose: Callable[..., Tensor], scale: Scale, logits: Tensor, first: int = 0
    ) -> Tensor:
        """Tokens (B, n, m) of logits (B, n, m, choices): m bits, or one row of the codebook.

        ``choose`` draws them with the same random numbers whenever it is called, also of some
        images alone: ``first`` is the first's place among all.
        """
        return choose(logits, first)

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        """The drawn tokens (B, n) or bits (B, n, bits)."""
        return tokens

    def step(
        self,
        advance: Callable[[Run, Scale, Guidance], tuple[Run, Step]],
        run: Run,
        scale: Scale,
        at: Guidance,
    ) -> tuple[Run, Step]:
        """One whole map: ``advance`` draws it from ``run``, or several times from forks of it."""
        return advance(run, scale, at)


def check_methods(methods: Sequence[Method]) -> None:
    """Raise ValueError where two are of one kind: which one counts would hang on their order."""
    names = [method.name for method in methods if method.name]
    for name in names:
        if names.count(name) > 1:
            raise once(name)


def once(name: str) -> ValueError:
    """What to raise where a chain has two of a kind."""
    return ValueError(f"{name} is connected twice, and acts once only; remove one of them.")


def drawn_maps(schedule: Schedule, methods: Sequence[Method]) -> Schedule:
    """The maps that are drawn with these methods."""
    return schedule[: min([len(schedule), *(method.drawn(schedule) for method in methods)])]
