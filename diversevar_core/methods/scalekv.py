"""ScaleKV: a smaller key/value cache, which takes most of a large image's memory.

Li et al., "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
arXiv 2505.19602. After every map, each block keeps the tokens that a few of the map's queries
attend to most. A few blocks (drafters) keep nearly all tokens; the others (refiners) share the rest
of the budget. The original scores tokens by products of queries that are not normed; here the score
is the softmax of the queries and keys that attention uses, cosine-normed and rotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from ..errors import check_range
from ..models.blocks import KVCache, cat
from ..models.compiled import uncompiled
from ..sampling.method import Advance, BatchState, Context, Method, Step
from ..schedule import Scale, Schedule
from ..settings import Guidance

GRID = 4  # patches along a map's side; the middle token of each is in the window
POOL = 5  # neighbours whose largest score each token takes
LEAST = 4 / 13  # a refiner's least share of the mean: 200 of 650 tokens at Infinity-8B's last map


def drafters(depth: int, k: int) -> tuple[int, ...]:
    """The drafters at map k: published for Infinity-2B (32 blocks) and -8B (40 blocks).

    The paper measures them by running a model on prompts. For other models: the first block.
    """
    if depth == 32:
        return (0, 23) if k < 12 else (0,)
    return (0, 1, 2) if depth == 40 else (0,)


@dataclass(frozen=True)
class ScaleKV(Method):
    """Keep the share ``budget`` of all blocks' keys and values; 1 keeps all.

    It is a share of the cache at the schedule's last map, and at least the window. The published
    10 % are 650 of 6,425 tokens per block at 1M.
    """

    budget: float = 0.1
    name = "ScaleKV"

    def __post_init__(self) -> None:
        check_range("budget", self.budget, 0.01, 1)

    def memory(self, cache: float, token: float, schedule: Schedule, depth: int) -> float:
        return self.budget * cache

    def begin(self, context: Context) -> Method:
        drawn = context.schedule[: len(context.plan)]
        mean = max(round(self.budget * context.schedule[-1].begin), GRID**2)
        kept = [shares(mean, scale, context.depth) for scale in drawn[1:]]  # after each map
        blocks = range(context.depth)
        return Compressed([[(scale, kept[scale.k][i]) for scale in drawn[:-1]] for i in blocks])


def shares(mean: int, scale: Scale, depth: int) -> list[int]:
    """How many tokens each block keeps for a map, ``mean`` on average.

    Within 2.4 % of the published tables, whose rounding gives a drafter up to 67 tokens less and a
    refiner up to 6 more than here.
    """
    few = drafters(depth, scale.k)
    many = depth - len(few)
    left = (depth * mean - len(few) * scale.begin) // many
    refiner = max(left, round(LEAST * mean), GRID**2)
    drafter = (depth * mean - many * refiner) // len(few)
    return [drafter if i in few else refiner for i in range(depth)]


@dataclass(frozen=True)
class Compressed(Method):
    """ScaleKV for one batch. plans: per block, each map but the last with the tokens to keep."""

    plans: Sequence[Sequence[tuple[Scale, int]]]

    def step(
        self, advance: Advance, batch: BatchState, scale: Scale, guidance: Guidance
    ) -> tuple[BatchState, Step]:
        if scale.k == 0:
            batch.model.caches = [CompressedCache(plan) for plan in self.plans]
        with uncompiled():  # the cache has another size at every map and block
            return advance(batch, scale, guidance)


class CompressedCache(KVCache):
    """One block's keys and values of the tokens that are attended to most, per row and head."""

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
    """Indices (rows, heads, count), ascending, of the keys (rows, heads, m, c) to keep.

    They are the tokens of this map's window, and the tokens that the window's queries, from
    (rows, heads, n, c), attend to most.
    """
    window = window_of(scale, q.shape[2], q.device)
    scores = q[:, :, window].float() @ k.float().mT
    window += k.shape[2] - q.shape[2]
    scores[..., window] = -torch.inf
    scores = F.max_pool1d(scores.softmax(dim=-1).sum(dim=2), POOL, 1, POOL // 2)
    scores[..., window] = torch.inf
    return scores.topk(count).indices.sort().values


def window_of(scale: Scale, count: int, device: torch.device) -> Tensor:
    """Indices of the middle tokens of a grid of patches; evenly spread ones in a pruned map."""
    if count < scale.tokens:
        return middles(count, GRID**2, device)
    rows, columns = middles(scale.h, GRID, device), middles(scale.w, GRID, device)
    return (rows[:, None] * scale.w + columns).flatten()


def middles(length: int, parts: int, device: torch.device) -> Tensor:
    """The middle index of each part of a length, made on the device, so that nothing waits."""
    parts = min(length, parts)
    return ((2 * torch.arange(parts, device=device) + 1) * length - 1) // (2 * parts)
