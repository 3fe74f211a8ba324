"""Batch repulsion: a picture avoids what the earlier ones of its batch drew.

Ours; of the family of particle guidance (Corso et al., arXiv 2310.13102), in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..schedule import Scale
from . import Method


@dataclass(frozen=True)
class Repulsion(Method):
    """Lower a choice's logit by ``strength`` times the share of earlier pictures that drew it.

    At the maps up to ``side``, token by token. The batch is drawn in order, so the first picture is
    what it is alone; the others depend on the company.
    """

    strength: float = 4.0
    side: int = 4
    together = True
    order = 5

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(
                f"The strength of repulsion is a number of 0 or more, not {self.strength}."
            )

    def draw(self, choose: Callable[[Tensor], Tensor], scale: Scale, logits: Tensor) -> Tensor:
        if self.strength == 0 or scale.side > self.side:
            return choose(logits)
        pushed, drawn = logits.clone(), torch.zeros_like(logits)
        for i in range(1, len(logits)):
            drawn[i] = F.one_hot(choose(pushed)[i - 1], logits.shape[-1])
            pushed[i] -= self.strength * drawn[1 : i + 1].mean(dim=0)
        return choose(pushed)
