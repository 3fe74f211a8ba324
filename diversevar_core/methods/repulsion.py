"""Batch repulsion: make tokens that earlier images of the batch drew less likely.

This pack's own method, similar to particle guidance (Corso et al., arXiv 2310.13102).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_range
from ..sampling.method import Method
from ..schedule import Scale


@dataclass(frozen=True)
class Repulsion(Method):
    """Lower a choice's logit by ``strength`` times the share of earlier images that drew it.

    It acts on every token of the maps up to ``side``. The first image does not change; each other
    image depends on those before it in the batch.
    """

    strength: float = 4.0
    side: int = 4
    together = True
    order = 5
    name = "Batch Repulsion"

    def __post_init__(self) -> None:
        check_range("The strength of repulsion", self.strength, 0)

    def image_logits(self, logits: Tensor, scale: Scale, before: Sequence[Tensor]) -> Tensor:
        if self.strength == 0 or scale.side > self.side or not before:
            return logits
        times = torch.zeros_like(logits)  # how often each choice was drawn
        for tokens in before:
            times.scatter_add_(-1, tokens.unsqueeze(-1), torch.ones_like(times[..., :1]))
        return logits - self.strength / len(before) * times
