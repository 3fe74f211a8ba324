"""ScaleKV: fewer keys and values from map to map, where most of a large image's memory goes.

Li et al., "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
arXiv 2505.19602. After every map each block keeps the tokens that a few of the map's queries attend
to most: a few blocks, the drafters, nearly all, the others, the refiners, what is left of the
budget. The original scores with raw products of queries that are not normed; here they are those
that attend, cosine-normed and rotary, and the scores their softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from ..models.blocks import KVCache, cat
from ..models.compiled import uncompiled
from ..sampling.run import Context, Method, Run, Step
from ..sampling.schedule import Scale
from ..sampling.settings import Guidance

GRID = 4  # patches along a map's side; the token in the middle of each is in the window
POOL = 5  # neighbours in a row that share their largest score
LEAST = 4 / 13  # of the mean, for a refiner: 200 of 650 tokens at Infinity-8B's last map


def drafters(depth: int, k: int) -> tuple[int, ...]:
    """Blocks that look at many maps at map k: published of Infinity-2B (32 blocks) and -8B (40).

    The paper measures them by running a model on prompts; of any other model it is the first block.
    """
    if depth == 32:
        return (0, 23) if k < 12 else (0,)
    return (0, 1, 2) if depth == 40 else (0,)


@dataclass(frozen=True)
class ScaleKV(Method):
    """Keep the share ``budget`` of all blocks' keys and values; 1 keeps all.

    A share of what the whole schedule's last map would find, and at least the window. Published:
    650 of 6,425 tokens a block at 1M, called 10 %.
    """

    budget: float = 0.1
    name = "ScaleKV"

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"ScaleKV keeps a share above 0 and up to 1, not {self.budget}.")

    @property
    def cached(self) -> float:
        return self.budget

    def begin(self, context: Context) -> Method:
        drawn = context.schedule[: len(context.plan)]
        mean = max(round(self.budget * context.schedule[-1].begin), GRID**2)
        kept = [shares(mean, scale, context.depth) for scale in drawn[1:]]  # after each map
        blocks = range(context.depth)
        return Compressed([[(scale, kept[scale.k][i]) for scale in drawn[:-1]] for i in blocks])


def shares(mean: int, scale: Scale, depth: int) -> list[int]:
    """How many tokens each block keeps for a map, on average ``mean`` or all that came before.

    The published tables to within 2.4 %: by their rounding a drafter keeps up to 67 tokens less
    than all, and a refiner up to 6 more than here.
    """
    few = drafters(depth, scale.k)
    many = depth - len(few)
    left = (depth * mean - len(few) * scale.begin) // many
    refiner = max(left, round(LEAST * mean), GRID**2)
    drafter = (depth * mean - many * refiner) // len(few)
    return [drafter if i in few else refiner for i in range(depth)]


@dataclass(frozen=True)
class Compressed(Method):
    """ScaleKV at work. plans: by block, every map but the last and what is kept after it."""

    plans: Sequence[Sequence[tuple[Scale, int]]]

    def step(
        self,
        advance: Callable[[Run, Scale, Guidance], tuple[Run, Step]],
        run: Run,
        scale: Scale,
        at: Guidance,
    ) -> tuple[Run, Step]:
        if scale.k == 0:
            run.state.caches = [CompressedCache(plan) for plan in self.plans]
        with uncompiled():  # what is kept is another size at every map and block
            return advance(run, scale, at)


class CompressedCache(KVCache):
    """One block's keys and values of the tokens that are attended to most, by row and head."""

    def __init__(self, plan: Sequence[tuple[Scale, int]]):
        super().__init__(len(plan), 0)
        self.plan = plan

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.maps == 0:
            return super().extend(q, k, v)
        scale, count = self.plan[-self.maps]
        self.maps -= 1
        if self.k is None:
            self.k = self.v = v[:, :, :0]
        k, v = cat(self.k, k.to(v.dtype)), cat(self.v, v)
        self.k, self.v = k, v
        if k.shape[2] > count:
            index = repeat(attended(q, k, scale, count), "r h m -> r h m c", c=k.shape[3])
            self.k, self.v = k.gather(2, index), v.gather(2, index)
        self.filled = self.k.shape[2]
        return k, v


def attended(q: Tensor, k: Tensor, scale: Scale, count: int) -> Tensor:
    """Places (rows, heads, count), in order, of the keys (rows, heads, m, c) to keep.

    They are the window of this map, whose queries (rows, heads, n, c) stand for all, and those of
    the others with the largest sum of its softmax.
    """
    window = window_of(scale, q.shape[2], q.device)
    scores = q[:, :, window].float() @ k.float().mT
    window += k.shape[2] - q.shape[2]
    scores[..., window] = -torch.inf
    scores = F.max_pool1d(scores.softmax(dim=-1).sum(dim=2), POOL, 1, POOL // 2)
    scores[..., window] = torch.inf
    return scores.topk(count).indices.sort().values


def window_of(scale: Scale, count: int, device: torch.device) -> Tensor:
    """Places of the middle tokens of a grid of patches; of some tokens of a map, evenly spread."""
    if count < scale.tokens:
        return middles(count, GRID**2, device)
    rows, columns = middles(scale.h, GRID, device), middles(scale.w, GRID, device)
    return (rows[:, None] * scale.w + columns).flatten()


def middles(length: int, parts: int, device: torch.device) -> Tensor:
    """The middle of each part of a length, the lower of two; made where it is needed, unawaited."""
    parts = min(length, parts)
    return ((2 * torch.arange(parts, device=device) + 1) * length - 1) // (2 * parts)
