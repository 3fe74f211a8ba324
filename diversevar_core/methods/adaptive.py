"""Adaptive logits scaling: less certain early bits.

Yang et al., "DiverseAR", arXiv 2512.02931. With guidance and a low temperature, the bits of early
maps are nearly certain. The logits of such a map are divided by a temperature at which the mean of
the largest probabilities is the map's target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import check_range
from ..sampling.method import Context, Method
from ..schedule import Scale

TARGETS = (0.60, 0.60, 0.65, 0.70, 0.75, 0.80)  # the paper's, for the first maps
LARGEST, STEPS = 8.0, 20  # largest temperature, and steps of the bisection


@dataclass(frozen=True)
class AdaptiveScaling(Method):
    """Limit the mean of the largest probabilities in the first maps.

    strength: from 0 (off) to 1 (the paper's targets). The targets are for bits, whose largest
    probability is at least half; a codebook's is mostly below them, and then nothing changes.
    """

    strength: float = 0.5
    choices: int = 2  # of a token, or of a bit; set by ``begin``
    order = 4
    name = "Adaptive Logits Scaling"

    def __post_init__(self) -> None:
        check_range("The strength of adaptive scaling", self.strength, 0, 1)

    def begin(self, context: Context) -> AdaptiveScaling:
        return replace(self, choices=context.choices)

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        if self.strength == 0 or scale.k >= len(TARGETS):
            return logits
        target = 1 - self.strength * (1 - TARGETS[scale.k])
        choices = logits.unflatten(-1, (-1, self.choices))
        return tempered(choices, target).flatten(-2)


def certainty(choices: Tensor) -> Tensor:
    """Mean of the largest probabilities of (B, n, m, choices) logits: (B, 1, 1, 1)."""
    return choices.softmax(dim=-1).amax(dim=-1, keepdim=True).mean(dim=(1, 2), keepdim=True)


def tempered(choices: Tensor, target: float) -> Tensor:
    """Divide (B, n, m, choices) logits so that each image's certainty is at most ``target``.

    The temperature, 1 to ``LARGEST``, is found by bisection. Images already below the target do
    not change.
    """
    low = choices.new_ones(len(choices), 1, 1, 1)
    high = low * LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        above = certainty(choices / middle) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(certainty(choices) > target, choices / high, choices)
