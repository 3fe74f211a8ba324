"""The attention kernel, a function that a host can replace with its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(q, k, v, mask, scale): q (rows, heads, n, c); k, v (rows, heads, m, c); mask (rows, 1, 1, m),
True where k is seen, or None; scale multiplies q k. Returns (rows, heads, n, c)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Torch's fused attention."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
