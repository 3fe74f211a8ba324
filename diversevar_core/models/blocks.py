"""Layers that VAR's and Infinity's transformer blocks share.

Cosine self-attention with a key/value cache, the modulated layer norm, the feed-forward layer
(``models/basic_var.py`` of FoundationVision/VAR, ``infinity/models/basic.py`` of
FoundationVision/Infinity). The residual stream is float32; layers compute in ``dtype``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention

EPS = 1e-6
MAX_LOG_SCALE = math.log(100)
MIN_LENGTH = 1e-12  # of a query or key, which is divided by its length
LARGE = 1024  # tokens of a map; with more, the attention of one row keeps a GPU busy

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""An ``Attention`` with mask and scale already set: (q, k, v) -> result."""

Rotary = Tensor
"""Cosines and sines of the tokens' rotary angles, ([rows,] tokens, head_dim / 2, 2)."""

Terms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2 of a block, each (rows, 1, C) float32."""


class KVCache:
    """One block's keys and values of the maps so far, in one allocation.

    maps: how many maps to keep: all but the last, whose keys and values are not read again.
    tokens: how many tokens these maps have together.
    """

    def __init__(self, maps: int, tokens: int):
        self.maps, self.room, self.filled = maps, tokens, 0
        self.k = self.v = None

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, n, c) keys and values; return all so far, in the values' dtype.

        q: the map's queries, which ScaleKV's cache selects tokens by.
        """
        if self.maps == 0:
            k = k.to(v.dtype)
            return (k, v) if self.k is None else tuple(map(cat, self.kept(), (k, v)))
        self.maps -= 1
        if self.k is None:
            rows, heads, _, c = k.shape
            self.k, self.v = v.new_empty(2, rows, heads, self.room, c)
        start, self.filled = self.filled, self.filled + k.shape[2]
        self.k[:, :, start : self.filled] = k
        self.v[:, :, start : self.filled] = v
        return self.kept()

    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (rows, heads, filled, c)."""
        return self.k[:, :, : self.filled], self.v[:, :, : self.filled]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attend) -> Tensor:
        """Attention of (rows, heads, n, c) queries to this map and those before; may overwrite q.

        At the last map, keys and values are joined row by row to save memory, if a row alone is
        enough work for the device; after it the cache is freed.
        """
        if self.maps > 0 or self.k is None:
            return attention(q, *self.extend(q, k, v))
        rows = 1 if q.is_cpu or q.shape[2] >= LARGE else len(q)
        before = self.kept()
        parts = (t.split(rows) for t in (q, before[0], k, before[1], v))
        for q_part, k_before, k_new, v_before, v_new in zip(*parts, strict=True):
            k_all = cat(k_before, k_new.to(v.dtype))
            q_part.copy_(attention(q_part, k_all, cat(v_before, v_new)))
        self.k = self.v = None
        return q

    def halve(self) -> None:
        """Drop the second half of the rows."""
        if self.k is not None:
            rows = len(self.k) // 2
            self.k, self.v = self.k[:rows].clone(), self.v[:rows].clone()


class SourceCache:
    """One block's keys and values, with those of a source image before them.

    A source that all images share is stored once, with the rows of one image.
    """

    def __init__(self, k: Tensor, v: Tensor, cache: KVCache):
        self.k, self.v, self.cache = k, v, cache

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attend) -> Tensor:
        """``KVCache.attend``, to the source too."""
        k, v = self.cache.extend(q, k, v)
        k = prepend(self.k, k)  # the keys without the source are freed before the values are joined
        return attention(q, k, prepend(self.v, v))


def prepend(source: Tensor, x: Tensor) -> Tensor:
    """Join along the tokens; each row of the source is repeated for len(x) / len(source) rows."""
    x = x.unflatten(0, (len(source), -1))
    source = source.unsqueeze(1).expand(-1, x.shape[1], -1, -1, -1)
    return torch.cat((source, x), dim=3).flatten(0, 1)


def cat(before: Tensor, new: Tensor) -> Tensor:
    """Join (rows, heads, tokens, c) along the tokens."""
    return torch.cat((before, new), dim=2)


def terms_of(flat: Tensor) -> Terms:
    """Split (rows, 1, 6, C) into the terms, and add 1 to the scales."""
    gamma1, gamma2, scale1, scale2, shift1, shift2 = flat.unbind(2)
    return gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2


Norm = tuple[Tensor, Tensor]
"""Scale and shift of ``modulate``; layers apply it themselves, which frees the result early."""


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of (rows, n, C), times scale, plus shift, both (rows, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), scale)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate adjacent pairs of channels of x (rows, n, ..., heads, c); overwrites x."""
    table = rotary.view(-1, x.shape[1], *(1 for _ in x.shape[2:-1]), *rotary.shape[-2:])
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile does not fuse complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    turned = torch.view_as_complex(pairs).mul_(torch.view_as_complex(table))
    return torch.view_as_real(turned).flatten(-2)


class Fixed(NamedTuple):
    """Parameters of self-attention in the form that it uses, the same for every map."""

    bias: Tensor  # (3C,), 0 for the keys
    temperature: Tensor  # (2, heads, 1) float32: factors of queries and of keys (1)


class SelfAttention(nn.Module):
    """Cosine attention: unit queries and keys, a learned temperature per head."""

    def __init__(
        self, width: int, heads: int, attention: Attention, operations: ModuleType, **factory
    ):
        super().__init__()
        self.heads, self.attention, self.dtype = heads, attention, factory["dtype"]
        self.mat_qkv = operations.Linear(width, 3 * width, bias=False, **factory)
        self.q_bias = nn.Parameter(torch.empty(width, **factory))
        self.v_bias = nn.Parameter(torch.empty(width, **factory))
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1, **factory))
        self.proj = operations.Linear(width, width, **factory)

    def fixed(self, device: torch.device) -> Fixed:
        """Compute ``Fixed`` once for all maps."""
        q, v = (bias.to(device, self.dtype) for bias in (self.q_bias, self.v_bias))
        bias = torch.cat((q, torch.zeros_like(q), v))
        learned = self.scale_mul_1H11.to(device, torch.float32).clamp(max=MAX_LOG_SCALE).exp()
        temperature = learned.view(-1, 1)
        return Fixed(bias, torch.stack((temperature, torch.ones_like(temperature))))

    def forward(
        self,
        x: Tensor,
        norm: Norm,
        fixed: Fixed,
        cache: KVCache | SourceCache | None = None,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(rows, n, C) -> (rows, n, C), with attention to the cached tokens too.

        mask: (1, 1, n, m), True if a key is seen; None: all are, as in sampling.
        """
        qkv = self.mat_qkv(modulate(x, *norm).to(self.dtype))
        qkv += fixed.bias
        qkv = rearrange(qkv, "r n (three h c) -> r n three h c", three=3, h=self.heads)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        wide = torch.promote_types(qk.dtype, torch.float32)  # the norm of float64 is never smaller
        lengths = torch.linalg.vector_norm(qk, dim=-1, keepdim=True, dtype=wide)
        factor = fixed.temperature / lengths.clamp(min=MIN_LENGTH)
        in_place = qk.dtype == torch.float32 and not torch.is_grad_enabled()
        qk = qk.mul_(factor) if in_place else qk * factor  # float32
        if rotary is not None:
            qk = rotate(qk, rotary)
        q, k, v = (rearrange(t, "r n h c -> r h n c") for t in (*qk.unbind(2), v))
        attend = partial(self.attention, mask=mask, scale=1.0)
        if cache is None:
            mixed = attend(q.to(v.dtype), k.to(v.dtype), v)
        else:
            mixed = cache.attend(q.to(v.dtype), k, v, attend)
        return self.proj(rearrange(mixed, "r h n c -> r n (h c)"))


class FeedForward(nn.Module):
    """Modulated norm, linear, tanh GELU, linear: (rows, n, C) -> (rows, n, C)."""

    def __init__(self, width: int, hidden: int, operations: ModuleType, **factory):
        super().__init__()
        self.dtype = factory["dtype"]
        self.fc1 = operations.Linear(width, hidden, **factory)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = operations.Linear(hidden, width, **factory)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        return self.fc2(self.act(self.fc1(modulate(x, *norm).to(self.dtype))))


class HeadNorm(nn.Module):
    """The modulated norm before the head, float32: (rows, n, C), condition (rows, C)."""

    def __init__(self, width: int, operations: ModuleType, device: torch.device | str | None):
        super().__init__()
        linear = operations.Linear(width, 2 * width, device=device, dtype=torch.float32)
        self.ada_lin = nn.Sequential(nn.SiLU(), linear)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unsqueeze(1).chunk(2, dim=-1)
        return modulate(x, 1 + scale, shift)
