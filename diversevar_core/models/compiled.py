"""Blocks compiled by ``torch.compile``, for GPUs: a block then launches about half the kernels.

All blocks and sizes of a map share a few graphs:
one of the first map, one of those between, two of the last two; more where the number of rows
changes, with the batch or where guidance ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn

from .family import Family

GRAPHS = 64  # of one function that torch may make before it leaves the rest uncompiled
COMPILED: WeakSet[nn.Module] = WeakSet()  # all blocks that are


def compile_blocks(model: Family, device: torch.device | str) -> None:
    """Have every block compiled when it first runs. ValueError where this device cannot.

    Their products round as fused kernels do: tokens may differ where a choice is that close.
    """
    from torch._dynamo import config  # takes a second

    try:
        torch.compile(torch.nn.functional.silu)(torch.zeros(1, device=device))
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"torch.compile does not work here ({why}); turn it off.") from error
    config.cache_size_limit = max(config.cache_size_limit, GRAPHS)
    for block in model.blocks:
        block.compile(dynamic=True)
        COMPILED.add(block)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Meanwhile run blocks as they are written, where sizes would need too many graphs."""
    calls = {block: block._compiled_call_impl for block in COMPILED}
    try:  # torch.compiler.set_stance does it from torch 2.6 on
        for block in calls:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in calls.items():
            block._compiled_call_impl = call
