"""Adaptive logits scaling: less certain early bits.

Yang et al., "DiverseAR", arXiv 2512.02931. Where guidance and a low temperature leave the bits of
an early map nearly certain, its logits are divided by the temperature at which the mean largest
probability falls to that map's target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..sampling.run import Context, Method
from ..sampling.schedule import Scale

TARGETS = (0.60, 0.60, 0.65, 0.70, 0.75, 0.80)  # the paper's, of the first maps
LARGEST, STEPS = 8.0, 20  # temperature, and halvings of the range that it is looked for in


@dataclass(frozen=True)
class AdaptiveScaling(Method):
    """Limit the mean largest probability of the first maps.

    strength: 0 is off, 1 the paper's targets, between them is between. Written for bits, whose
    largest probability is half or more; a codebook's is mostly below the targets, and then nothing
    changes.
    """

    strength: float = 0.5
    choices: int = 2  # a token, or a bit; set by ``begin``
    order = 4
    name = "Adaptive Logits Scaling"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"The strength of adaptive scaling is 0 to 1, not {self.strength}.")

    def begin(self, context: Context) -> AdaptiveScaling:
        return replace(self, choices=context.choices)

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        if self.strength == 0 or scale.k >= len(TARGETS):
            return logits
        target = 1 - self.strength * (1 - TARGETS[scale.k])
        choices = logits.unflatten(-1, (-1, self.choices))
        return tempered(choices, target).flatten(-2)


def certainty(choices: Tensor) -> Tensor:
    """Mean largest probability of (B, n, m, choices) logits, (B, 1, 1, 1)."""
    return choices.softmax(dim=-1).amax(dim=-1, keepdim=True).mean(dim=(1, 2), keepdim=True)


def tempered(choices: Tensor, target: float) -> Tensor:
    """(B, n, m, choices) logits, divided so that their certainty is at most ``target``.

    By bisection of each image's temperature in 1 to ``LARGEST``; what is below is left alone.
    """
    low = choices.new_ones(len(choices), 1, 1, 1)
    high = low * LARGEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        above = certainty(choices / middle) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(certainty(choices) > target, choices / high, choices)
