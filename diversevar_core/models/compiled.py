"""Blocks compiled by ``torch.compile``, for GPUs: a block then launches about half the kernels.

All blocks share a few graphs: one for the first map, one for those between, two for the last two;
and more of each where the number of rows changes (another batch size, or where guidance ends).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn

from ..errors import UserError
from .family import Family

GRAPHS = 64  # that torch may compile of one function; after them it runs uncompiled
COMPILED: WeakSet[nn.Module] = WeakSet()  # all compiled blocks


def compile_blocks(model: Family, device: torch.device | str) -> None:
    """Compile every block when it first runs. UserError if torch cannot compile here.

    Fused kernels round differently, so a token may differ where two choices are nearly equal.
    """
    from torch._dynamo import config  # the import takes a second

    try:
        torch.compile(torch.nn.functional.silu)(torch.zeros(1, device=device))
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(f"torch.compile does not work here ({why}); turn it off.") from error
    config.cache_size_limit = max(config.cache_size_limit, GRAPHS)
    for block in model.blocks:
        block.compile(dynamic=True)
        COMPILED.add(block)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled blocks run uncompiled, for sizes that would need too many graphs."""
    calls = {block: block._compiled_call_impl for block in COMPILED}
    try:  # torch.compiler.set_stance does it from torch 2.6 on
        for block in calls:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in calls.items():
            block._compiled_call_impl = call
