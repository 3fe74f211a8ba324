"""Linear layers with weights in oneDNN's memory layout, for a CPU.

Weights are reordered once, not in every product: twice as fast for a few tokens, a fifth faster for
many. The operations are those that ``torch.compile`` uses for frozen models on a CPU.
"""

from __future__ import annotations

import timeit
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import FeedForward

TOKENS, WIDTH, TRIES = 128, 768, 5  # of the products that ``fastest_dtype`` measures


class Packed(nn.Module):
    """A linear layer, and optionally the tanh GELU after it, in one product."""

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__()
        # not parameters: a tensor in this layout can be neither saved nor moved
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
    """Replace a CPU model's linear layers by packed ones, where oneDNN has their type.

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
    """float32 or bfloat16, whichever this CPU multiplies faster; measured, in some milliseconds.

    With the newest instructions bfloat16 takes half the time of float32, without them 100 times it.
    """
    if not multiplies(torch.bfloat16):
        return torch.float32
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = Packed(nn.Linear(WIDTH, WIDTH, dtype=dtype))
        x = torch.ones(TOKENS, WIDTH, dtype=dtype)
        took[dtype] = min(timeit.repeat(partial(layer, x), number=1, repeat=TRIES))
    return min(took, key=took.get)
