"""DiverseVAR: soft suppression and amplification of singular values.

Wang et al., "Diversity Has Always Been There in Your Visual Autoregressive Models",
arXiv 2511.17074. At early maps, SSR softens the dominant singular values of the transformer's
input feature map, ``alpha * exp(-beta * s) * s``, and SAR strengthens those of its output,
``alpha * exp(beta * s) * s``. The matrix is tokens by channels, one per image and guidance row.

No full singular value decomposition is needed: with F F^T = W diag(s^2) W^T the result is
W diag(gain(s)) W^T F, so one eigendecomposition of the smaller Gram matrix is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, check_choice, check_range
from ..sampling.method import Context, Method
from ..schedule import Scale

MAX_EXPONENT = 30.0  # exp(30) squared and summed over a layer's width is still finite in float32
SITES = ("block", "model", "features")
DEFAULT_SIDES = (4, 6)  # the paper's scales; used where a model has maps of these sides


def reweight(x: Tensor, rate: float, alpha: float = 1.0, relative: bool = True) -> Tensor:
    """Multiply each singular value s of (..., n, C) matrices by ``alpha * exp(rate * s)``.

    rate: negative suppresses large values, positive amplifies them. With ``relative``, s is divided
    by the largest value s_1, whose gain then is ``alpha * exp(rate)`` on every model; without, the
    rate is the paper's beta, in units of 1 / s.
    Computed in float64, as squaring halves the digits (on the CPU for MPS and others without it).
    The exponent is at most ``MAX_EXPONENT``. Rate 0 with alpha 1 changes nothing, bit for bit.
    """
    if rate == 0 and alpha == 1:
        return x
    matrix = x.to(x.device if x.device.type == "cuda" else "cpu", torch.float64)
    wide = matrix.shape[-2] <= matrix.shape[-1]
    gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
    squares, vectors = torch.linalg.eigh(gram)  # ascending
    s = squares.clamp(min=0).sqrt()
    unit = s[..., -1:].clamp(min=torch.finfo(s.dtype).tiny) if relative else 1.0
    gain = alpha * (rate * (s / unit)).clamp(max=MAX_EXPONENT).exp()
    function = (vectors * gain.unsqueeze(-2)) @ vectors.mT
    return (function @ matrix if wide else matrix @ function).to(x)


@dataclass(frozen=True)
class DiverseVAR(Method):
    """SSR on inputs and SAR on outputs, at the maps of the given sides.

    ssr, sar: strengths (the paper's beta), 0 and above; 0 is off. ssr_alpha, sar_alpha: the
    paper's overall gain alpha. relative: see ``reweight``. sides: of the maps to act on (see
    ``Scale.side``); None is ``DEFAULT_SIDES``. site: "block" acts on the input and output of every
    block, as summaries of the paper say; "model" on those of the whole transformer; "features" as
    "model", but on the input before the scale and position embeddings are added.
    """

    ssr: float = 0.0
    sar: float = 0.0
    sides: tuple[int, ...] | None = None
    site: str = "block"
    ssr_alpha: float = 1.0
    sar_alpha: float = 1.0
    relative: bool = True
    order = 2
    name = "SSR and SAR"

    def __post_init__(self) -> None:
        for name in ("ssr", "sar", "ssr_alpha", "sar_alpha"):
            check_range(name, getattr(self, name), 0)
        check_choice("site", self.site, SITES)

    def begin(self, context: Context) -> DiverseVAR:
        """Raises UserError if a side is not in the schedule."""
        known = [scale.side for scale in context.schedule]
        for side in self.sides or ():
            if side not in known:
                raise UserError(
                    f"This image has no token map of side {side}; "
                    f"its sides are {', '.join(map(str, known))}."
                )
        return self

    def acts_on(self, scale: Scale) -> bool:
        """Whether the map is one of ``sides``."""
        return scale.side in (DEFAULT_SIDES if self.sides is None else self.sides)

    def suppress(self, x: Tensor, scale: Scale) -> Tensor:
        """SSR, where the method acts."""
        return reweight(x, -self.ssr, self.ssr_alpha, self.relative) if self.acts_on(scale) else x

    def amplify(self, x: Tensor, scale: Scale) -> Tensor:
        """SAR, where the method acts."""
        return reweight(x, self.sar, self.sar_alpha, self.relative) if self.acts_on(scale) else x

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        return self.suppress(x, scale) if self.site == "features" else x

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        return self.suppress(x, scale) if self.site == "model" else x

    def block(self, run: Callable[[Tensor], Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        if self.site != "block":
            return run(x)
        return self.amplify(run(self.suppress(x, scale)), scale)

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        return self.amplify(x, scale) if self.site != "block" else x


# The paper acts on "scales 4 and 6, all blocks". Its alpha and beta are not public; these are the
# largest strengths without a measurable loss of alignment on an earlier emoji model of five maps.
PAPER = DiverseVAR(ssr=0.25, sar=0.125)
