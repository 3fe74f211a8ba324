"""Diversity methods: what may be changed while a picture is sampled.

A method sees the text, each map's input, each block, the output, the logits and the drawn tokens,
and overrides what it needs. It keeps no state that outlives a picture.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..schedule import Scale, Schedule


class Method:
    """Changes nothing; every hook returns what it was given."""

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError where the method does not fit the schedule."""

    def text(self, condition: object, scale: Scale) -> object:
        """The condition (``Text`` or class labels) of one map; the same object keeps it."""
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
