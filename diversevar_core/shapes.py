"""Sizes that are read off the shapes and names of a file's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .errors import UserError

MAX_BLOCKS = 200  # of the largest release: 40; a small broken file may name very many


def shape_of(state_dict: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    """A tensor's shape; KeyError if it is missing, UserError for other than ``dims`` sizes."""
    shape = state_dict[name].shape
    if len(shape) != dims or 0 in shape:
        raise UserError(f"{name} has shape {list(shape)}, which fits no model")
    return shape


def depth_of(keys: Collection[str], start: str = "blocks.") -> int:
    """The number of blocks in these keys, ``<start><number>.*``.

    1 if there are none, so that loading then names the first block's missing tensor. Raises
    UserError if one is missing, or there are more than ``MAX_BLOCKS``.
    """
    numbers = {key.removeprefix(start).split(".")[0] for key in keys if key.startswith(start)}
    if len(numbers) > MAX_BLOCKS:
        raise UserError(f"it has {len(numbers)} blocks, and no release has more than {MAX_BLOCKS}")
    for i in range(len(numbers)):
        if str(i) not in numbers:
            raise UserError(f"it has {len(numbers)} blocks, but none is {start}{i}")
    return max(len(numbers), 1)
