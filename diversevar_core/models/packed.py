"""Linear layers as oneDNN multiplies them fastest, for computing on a CPU.

Weights are put into its memory order once, not in every product: twice as fast for a few tokens, a
fifth for many. The operations are those to which ``torch.compile`` freezes a CPU's models.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from .blocks import FeedForward

TOKENS, WIDTH, TRIES = 128, 768, 5  # of the product by which types are compared; milliseconds


class Packed(nn.Module):
    """A linear layer, and optionally the tanh GELU after it, in one product."""

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        # no parameters: a tensor in this order can be neither saved nor moved
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)


def multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bfloat16 or dtype == torch.float32


def pack(model: nn.Module) -> None:
    """Pack a CPU model's linear layers in place, where that is possible.

    The model can then only be run: its ``state_dict`` lacks the packed weights.
    """
    for layer in list(model.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear) and multiplies(child.weight.dtype):
                gelu = isinstance(layer, FeedForward) and name == "fc1"
                setattr(layer, name, Packed(child, gelu))
                if gelu:
                    layer.act = nn.Identity()


@torch.no_grad()
def fastest_dtype() -> torch.dtype:
    """float32 or bfloat16, whichever this CPU multiplies faster, measured in milliseconds.

    With the newest instructions bfloat16 takes half the time, without them a hundred times it.
    """
    if not multiplies(torch.bfloat16):
        return torch.float32
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = Packed(nn.Linear(WIDTH, WIDTH, dtype=dtype))
        x = torch.ones(TOKENS, WIDTH, dtype=dtype)
        took[dtype] = min(seconds(layer, x) for _ in range(TRIES))
    return min(took, key=took.get)


def seconds(layer: nn.Module, x: Tensor) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start
