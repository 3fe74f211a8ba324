"""Diversity methods: what may be changed while a picture is sampled.

``begin`` is told what is about to be sampled and returns the method that acts on it, which sees
the text, each map's input, each block, the output, the logits and the drawn tokens, may run whole
maps from a saved state, and overrides what it needs. It keeps no state that outlives a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..conditions import Condition
from ..schedule import Scale, Schedule
from ..settings import Guidance

if TYPE_CHECKING:
    from ..sampler import Run, Step


@dataclass(frozen=True, eq=False)
class Context:
    """The pictures that are about to be sampled together."""

    schedule: Schedule
    places: Sequence[int]  # of these pictures in the whole batch
    seeds: Sequence[int]  # of these pictures
    condition: Condition


class Method:
    """Changes nothing; every hook returns what it was given."""

    together = False  # whether the pictures of a batch must be computed together

    def begin(self, context: Context) -> Method:
        """What acts on these pictures. Raises ValueError where the method does not fit them."""
        return self

    def text(self, condition: Condition, scale: Scale) -> Condition:
        """The condition of one map; the same object keeps what was computed from it."""
        return condition

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's input feature map (rows, n, C), float32."""
        return x

    def block(self, run: Callable[[Tensor], Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        """Block i on one map: call ``run`` on (rows, n, C) and return its output."""
        return run(x)

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's output feature map (rows, n, C), float32."""
        return x

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        """Guided, tempered logits (B, n, channels)."""
        return logits

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
