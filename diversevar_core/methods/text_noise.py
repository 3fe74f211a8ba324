"""Noise on the text while the first maps are drawn.

The annealing is CADS' (Sadat et al., arXiv 2310.17347); Park et al., "DiverseVAR", arXiv
2511.21415, noise the text of VAR models and then travel back (``travel.py``). Its numbers are not
public, so the defaults are CADS'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..sampling.conditions import Condition, Text
from ..sampling.run import Context, Method
from ..sampling.schedule import Scale

OTHER_STREAM = 0x5EED0F7E47  # added to an image's seed, whose own stream draws the tokens


@dataclass(frozen=True, eq=False)
class TextNoise(Method):
    """``sqrt(gamma) y + strength sqrt(1 - gamma) n`` in place of the text features y.

    strength: of the noise n, 0 is off. begin, end: gamma falls from 1 to 0 while the time, which
    runs from 1 at the first map to 0 at the last, rises from ``begin`` to ``end`` (CADS' tau_1 and
    tau_2; an end above 1 leaves some of the text to the first map). rescale: CADS' psi, how far
    the result takes back the text's mean and deviation. Every image has one noise, of its seed;
    tokens are drawn with the same numbers as without it.
    """

    strength: float = 0.25
    begin_time: float = 0.6
    end_time: float = 0.9
    rescale: float = 1.0
    noise: tuple[Tensor, ...] = ()  # like each image's text; set by ``begin``
    order = 1
    name = "Text Noise"

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(
                f"The strength of text noise is a number of 0 or more, not {self.strength}."
            )
        if not 0 <= self.begin_time < self.end_time:
            raise ValueError(
                "Text noise begins before it is full, at times of 0 or more; "
                f"not at {self.begin_time} and {self.end_time}."
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is 0 to 1, not {self.rescale}.")

    def begin(self, context: Context) -> TextNoise:
        """Raises ValueError where the model does not read text."""
        if not isinstance(context.condition, Text):
            raise ValueError("Text noise needs a model that reads text; this one reads classes.")
        noise = []
        for seed, text in zip(context.seeds, context.condition.positive, strict=True):
            generator = torch.Generator().manual_seed((seed + OTHER_STREAM) % 2**64)
            noise.append(torch.randn(text.shape, generator=generator).to(text))
        return replace(self, noise=tuple(noise))

    def text(self, condition: Condition, scale: Scale) -> Condition:
        gamma = annealed(1 - scale.progress, self.begin_time, self.end_time)
        if self.strength == 0 or gamma == 1:
            return condition
        pairs = zip(condition.positive, self.noise, strict=True)
        return replace(condition, positive=[self.blend(y, n, gamma) for y, n in pairs])

    def blend(self, y: Tensor, n: Tensor, gamma: float) -> Tensor:
        """The text features (length, Ct) of a map with this gamma."""
        noisy = gamma**0.5 * y + self.strength * (1 - gamma) ** 0.5 * n
        again = (noisy - noisy.mean()) / noisy.std() * y.std() + y.mean()
        return self.rescale * again + (1 - self.rescale) * noisy


def annealed(time: float, begin: float, end: float) -> float:
    """CADS' gamma: 1 up to ``begin``, 0 from ``end`` on, a straight line between."""
    return min(max((end - time) / (end - begin), 0.0), 1.0)
