"""FastVAR: fewer tokens in the last maps, which take most of an image's time.

Guo et al., "FastVAR: Linear Visual Autoregressive Modeling via Cached Token Pruning", arXiv
2503.23367. The last two maps are not computed. In the two before them, only the tokens that differ
most from the map's mean pass through the middle blocks; for the other tokens, what a block adds is
taken from the last map that was computed whole. The paper selects tokens in every branch of a
block; here they are selected once per block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..errors import check_range
from ..resize import area
from ..sampling.method import Context, Method
from ..schedule import Scale, Schedule

WHOLE_TO = 1 / 2  # of the last map's side; smaller maps are computed whole
PRUNED_BLOCKS = 3 / 32, 28 / 32  # of the depth; Infinity-2B: blocks 3 to 27
FIRST_SHARE = 0.8  # of ``prune``, for the first pruned map


@dataclass(frozen=True)
class FastVAR(Method):
    """Leave out the last ``skip`` maps, and the share ``prune`` of the large maps' tokens.

    The defaults are the published ones: at 1M, sides 48 and 64 are left out, and 40 % and 50 % of
    the tokens at sides 32 and 40.
    """

    prune: float = 0.5
    skip: int = 2
    order = -1
    name = "FastVAR"

    def __post_init__(self) -> None:
        check_range("prune", self.prune, 0, 0.99)
        check_range("skip", self.skip, 0)

    def drawn(self, schedule: Schedule) -> Schedule:
        return schedule[: max(1, len(schedule) - self.skip)]

    def begin(self, context: Context) -> Method:
        return self.pruned(context.schedule, len(context.plan), context.depth) or Method()

    def memory(self, cache: float, token: float, schedule: Schedule, depth: int) -> float:
        acting = self.pruned(schedule, len(self.drawn(schedule)), depth)
        return cache + (acting.whole.tokens * len(acting.blocks) * token if acting else 0)

    def pruned(self, schedule: Schedule, maps: int, depth: int) -> Pruned | None:
        """What is left out of the schedule's first ``maps``; None: nothing."""
        drawn = schedule[:maps]
        large = [scale for scale in drawn if scale.side >= WHOLE_TO * schedule[-1].side]
        whole = drawn[: len(drawn) - len(large)]
        if self.prune == 0 or not large or not whole:
            return None
        shares = {scale.k: self.prune for scale in large}
        shares[large[0].k] *= FIRST_SHARE
        first, end = (round(part * depth) for part in PRUNED_BLOCKS)
        return Pruned(shares, whole[-1], range(first, end))


@dataclass
class Pruned(Method):
    """FastVAR for one batch.

    shares: map -> share of its tokens to leave out. whole: the last map that is computed whole.
    changes: block -> what it added to that map, (rows, n, C).
    """

    shares: dict[int, float]
    whole: Scale
    blocks: range
    changes: dict[int, Tensor] = field(default_factory=dict)

    def block(self, run: Callable[..., Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        if i not in self.blocks or scale.k < self.whole.k:
            return run(x)
        if scale.k == self.whole.k:
            out = run(x)
            self.changes[i] = out - x
            return out
        kept = x.shape[1] - int(x.shape[1] * self.shares[scale.k])
        kept_index = pivotal(x, kept)
        index = repeat(kept_index, "r m -> r m c", c=x.shape[2])
        out = x + self.stand_in(i, scale)[: len(x)]
        return out.scatter_(1, index, run(x.gather(1, index), kept_index))

    def stand_in(self, i: int, scale: Scale) -> Tensor:
        """What block i added to the last whole map, at the size of this one: (rows, n, C)."""
        change = rearrange(self.changes[i], "r (h w) c -> r c h w", h=self.whole.h)
        return rearrange(area(change, scale.h, scale.w), "r c h w -> r (h w) c")


def pivotal(x: Tensor, count: int) -> Tensor:
    """Indices (rows, count) of the tokens of (rows, n, C) that differ most from their mean."""
    difference = (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return torch.topk(difference, count).indices
