"""Energy path search: draw several candidates of a map and keep the likeliest.

Yang et al., "DiverseAR", arXiv 2512.02931. At each early map several candidates are drawn and
continued for a few maps; the one whose path has the lowest mean negative log-likelihood is kept.
The paper's energy also adds how far the mean of the largest probabilities is above the targets of
adaptive scaling. It is left out: of the map itself it is the same for all candidates, and with
adaptive scaling at strength 1 it is 0. The paper's numbers of candidates and maps are not public.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_range
from ..sampling.method import Advance, BatchState, Context, Method, Step
from ..schedule import Scale
from ..settings import Guidance


@dataclass(frozen=True)
class PathSearch(Method):
    """At the maps up to ``side``, draw ``candidates`` (1 is off) and look ``ahead`` maps ahead.

    Such a map takes as long as candidates * (1 + ahead) + 1 maps: those drawn to compare, and the
    chosen one again.
    """

    candidates: int = 4
    ahead: int = 1
    side: int = 4
    order = 6
    name = "Energy Path Search"

    def __post_init__(self) -> None:
        check_range("candidates", self.candidates, 1)
        check_range("ahead", self.ahead, 0)

    def begin(self, context: Context) -> Method:
        return Search(self, context) if self.candidates > 1 else Method()


class Search(Method):
    """The path search for one batch."""

    def __init__(self, settings: PathSearch, context: Context):
        self.settings, self.context = settings, context
        self.chosen: Tensor | None = None  # the current map's tokens, once they are chosen

    def step(
        self, advance: Advance, batch: BatchState, scale: Scale, guidance: Guidance
    ) -> tuple[BatchState, Step]:
        if scale.side > self.settings.side:
            return advance(batch, scale, guidance)
        coming = slice(scale.k + 1, scale.k + 1 + self.settings.ahead)
        coming = list(zip(self.context.schedule[coming], self.context.plan[coming], strict=False))
        best = None
        for _ in range(self.settings.candidates):
            trial, first = advance(batch.fork(), scale, guidance)
            energies = [self.energy(first)]
            for later in coming:
                trial, step = advance(trial, *later)
                energies.append(self.energy(step))
            del trial  # it shares its cache with the next candidate, or holds a copy
            energy = torch.cat(energies, dim=1).mean(dim=1)  # (B,)
            if best is None:
                best, chosen = energy, first.tokens
            better = (energy < best).view(-1, *[1] * (chosen.ndim - 1))
            chosen = torch.where(better, first.tokens, chosen)
            best = torch.minimum(best, energy)
        self.chosen = chosen  # which ``tokens`` returns for what this last pass draws
        result = advance(batch, scale, guidance)
        self.chosen = None
        return result

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        return tokens if self.chosen is None else self.chosen

    def energy(self, step: Step) -> Tensor:
        """Negative log-likelihood of every drawn token or bit of a map, (B, n * m)."""
        return -log_likelihood(step.logits, step.tokens, self.context.choices)


def log_likelihood(logits: Tensor, tokens: Tensor, choices: int) -> Tensor:
    """Log-likelihood (B, n * m) of tokens (B, n) or bits (B, n, bits) under (B, n, channels)."""
    logs = logits.unflatten(-1, (-1, choices)).log_softmax(dim=-1)
    return logs.gather(-1, tokens.view(*logs.shape[:-1], 1)).flatten(1)
