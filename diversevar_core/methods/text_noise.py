"""Noise on the text features while the first maps are drawn.

Park et al., "DiverseVAR", arXiv 2511.21415, add noise to the text of VAR models and then draw the
later maps again (``travel.py``). Its numbers are not public, so the schedule and the defaults are
those of CADS (Sadat et al., arXiv 2310.17347).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditions import Condition, Text
from ..errors import UserError, check_range
from ..sampling.method import Context, Method
from ..schedule import Scale

OTHER_STREAM = 0x5EED0F7E47  # added to an image's seed, so that the tokens' stream is not used


@dataclass(frozen=True, eq=False)
class TextNoise(Method):
    """Replace the text features y by ``sqrt(gamma) y + strength sqrt(1 - gamma) n``.

    strength: of the noise n, 0 is off. begin_time, end_time: time runs from 1 at the first map to 0
    at the last; gamma is 1 up to ``begin_time`` and 0 from ``end_time`` on (CADS' tau_1 and tau_2;
    with ``end_time`` above 1 the first map still sees some of the text). rescale: CADS' psi, the
    share of the result that gets the mean and deviation of y. Each image's noise depends on its
    seed; tokens are drawn with the same random numbers as without noise.
    """

    strength: float = 0.25
    begin_time: float = 0.6
    end_time: float = 0.9
    rescale: float = 1.0
    noise: tuple[Tensor, ...] = ()  # of each image, in the shape of its text; set by ``begin``
    order = 1
    name = "Text Noise"

    def __post_init__(self) -> None:
        check_range("The strength of text noise", self.strength, 0)
        check_range("rescale", self.rescale, 0, 1)
        if not 0 <= self.begin_time < self.end_time:
            raise UserError(
                "The begin of text noise must be 0 or more and below its end; "
                f"not {self.begin_time} and {self.end_time}."
            )

    def begin(self, context: Context) -> TextNoise:
        """Raises UserError if the model does not read text."""
        if not isinstance(context.condition, Text):
            raise UserError("Text noise needs a model that reads text; this one reads classes.")
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
        """Text features y and noise n (length, Ct) -> noisy text features."""
        noisy = gamma**0.5 * y + self.strength * (1 - gamma) ** 0.5 * n
        again = (noisy - noisy.mean()) / noisy.std() * y.std() + y.mean()
        return self.rescale * again + (1 - self.rescale) * noisy


def annealed(time: float, begin: float, end: float) -> float:
    """CADS' gamma: 1 up to ``begin``, 0 from ``end`` on, linear between them."""
    return min(max((end - time) / (end - begin), 0.0), 1.0)
