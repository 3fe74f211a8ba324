"""Area resizing that works on every device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def area(x: Tensor, h: int, w: int) -> Tensor:
    """``F.interpolate(mode="area")`` of (B, C, H, W) maps to h x w.

    On MPS, which has it only for sizes that divide evenly, it is a product with two matrices.
    """
    if x.device.type != "mps" or (x.shape[-2] % h == 0 and x.shape[-1] % w == 0):
        return F.interpolate(x, size=(h, w), mode="area")
    rows, columns = (windows(*sizes).to(x) for sizes in ((x.shape[-2], h), (x.shape[-1], w)))
    return rows @ x @ columns.T


def windows(size: int, out: int) -> Tensor:
    """Adaptive average pooling of one axis as a matrix (out, size)."""
    matrix = torch.zeros(out, size)
    for i in range(out):
        begin, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix
