"""Sizes that are read off the shapes and names of a file's tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .errors import UserError, check_range

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
    UserError if there are more than ``MAX_BLOCKS``.
    """
    numbers = {key.removeprefix(start).split(".")[0] for key in keys if key.startswith(start)}
    check_range("its number of blocks", len(numbers), 0, MAX_BLOCKS)
    return max(len(numbers), 1)


def check_heads(width: int, heads: int, parts: int = 1) -> None:
    """Raise UserError if a width cannot be divided among heads, and each head in so many parts."""
    if not heads or width % (parts * heads):
        raise UserError(f"its {width} channels cannot be divided among {heads} heads")
