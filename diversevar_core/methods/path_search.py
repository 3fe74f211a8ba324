"""Energy path search: of several ways to go on, the likeliest.

Yang et al., "DiverseAR", arXiv 2512.02931. At each early map several candidates are drawn, each is
rolled out over the maps after it, and the one whose path has the lowest mean negative
log-likelihood stays. The paper's energy adds a penalty on certainty above its targets, which
adaptive scaling keeps at 0; its numbers of candidates and maps are not public.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling.run import Context, Method, Run, Step
from ..sampling.schedule import Scale
from ..sampling.settings import Guidance


@dataclass(frozen=True)
class PathSearch(Method):
    """Choose among ``candidates`` (1 is off) at the maps up to ``side``, each ``ahead`` maps far.

    An early map's time grows by candidates times (1 + ahead).
    """

    candidates: int = 4
    ahead: int = 1
    side: int = 4
    order = 6
    name = "Energy Path Search"

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.ahead < 0:
            raise ValueError(
                "Path search takes 1 candidate or more and looks 0 maps ahead or more; "
                f"not {self.candidates} and {self.ahead}."
            )

    def begin(self, context: Context) -> Method:
        return Search(self, context) if self.candidates > 1 else Method()


class Search(Method):
    """A path search at work."""

    def __init__(self, settings: PathSearch, context: Context):
        self.settings, self.context = settings, context
        self.chosen: Tensor | None = None  # of the map that is being drawn

    def step(
        self,
        advance: Callable[[Run, Scale, Guidance], tuple[Run, Step]],
        run: Run,
        scale: Scale,
        at: Guidance,
    ) -> tuple[Run, Step]:
        if scale.side > self.settings.side:
            return advance(run, scale, at)
        coming = slice(scale.k + 1, scale.k + 1 + self.settings.ahead)
        coming = list(zip(self.context.schedule[coming], self.context.plan[coming], strict=False))
        best = None
        for _ in range(self.settings.candidates):
            trial, first = advance(run.fork(), scale, at)
            energies = [self.energy(first)]
            for later in coming:
                trial, step = advance(trial, *later)
                energies.append(self.energy(step))
            del trial  # it shares the cache that the next one writes, or has one of its own
            energy = torch.cat(energies, dim=1).mean(dim=1)  # (B,)
            if best is None:
                best, chosen = energy, first.tokens
            better = (energy < best).view(-1, *[1] * (chosen.ndim - 1))
            chosen = torch.where(better, first.tokens, chosen)
            best = torch.minimum(best, energy)
        self.chosen = chosen
        went = advance(run, scale, at)
        self.chosen = None
        return went

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        return tokens if self.chosen is None else self.chosen

    def energy(self, step: Step) -> Tensor:
        """Negative log-likelihood of every token or bit that a map drew, (B, n * m)."""
        return -log_likelihood(step.logits, step.tokens, self.context.choices)


def log_likelihood(logits: Tensor, tokens: Tensor, choices: int) -> Tensor:
    """Of every token (B, n) or bit (B, n, bits) under logits (B, n, channels): (B, n * m)."""
    logs = logits.unflatten(-1, (-1, choices)).log_softmax(dim=-1)
    return logs.gather(-1, tokens.view(*logs.shape[:-1], 1)).flatten(1)
