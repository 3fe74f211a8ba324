"""What the sampler asks of a model family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..sampling.conditions import Condition
from ..sampling.schedule import Scale, Schedule
from ..sampling.settings import Settings

Change = Callable[[Tensor, Scale], Tensor]  # of a feature map (rows, n, C)


class TokenKind(NamedTuple):
    """A token: how many choices, in how many channels of the tokenizer's features.

    VAR: (4096, 32), one row of the codebook; Infinity: (2, 32), a bit in each channel.
    """

    choices: int
    channels: int

    def __str__(self) -> str:
        if self.choices == 2:
            return f"{self.channels} bits a token"
        return f"a codebook of {self.choices} rows of {self.channels}"


def shape_of(state_dict: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    """A tensor's shape; KeyError where it is missing, ValueError for other than ``dims`` sizes."""
    shape = state_dict[name].shape
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}, which is no model's")
    return shape


def depth_of(keys: Collection[str], start: str = "blocks.") -> int:
    """How many blocks names with this start and a number count; ValueError where one is left out.

    Without any block it is 1, which then is missing by its first tensor's name.
    """
    numbers = {key.removeprefix(start).split(".")[0] for key in keys if key.startswith(start)}
    for i in range(len(numbers)):
        if str(i) not in numbers:
            raise ValueError(f"it has {len(numbers)} blocks, but none is {start}{i}")
    return max(len(numbers), 1)


class State(Protocol):
    """One batch of images in flight: what the blocks remember from map to map."""

    def fork(self) -> State:
        """A copy that goes on without changing this one."""

    def drop_unconditional(self) -> None:
        """Forget the unconditional rows; the condition is then set once more."""


class Family(nn.Module):
    """A transformer; ``families.FAMILIES`` lists them all.

    It is built from what ``read_config`` returns, operations (where the layer classes come from),
    attention (the kernel), device and dtype (in which the layers compute).
    """

    name: str
    reads: type[Condition]  # the kind of condition
    edits: bool = False  # whether it edits a source image, which its condition must have
    token_kind: TokenKind
    aspects: Collection[float] = (1.0,)  # height / width of the images that it can make
    budgets: Collection[str | None] = (None,)  # of pixels; None where it has one size only
    depth: int  # number of blocks
    width: int  # channels C of the blocks
    dtype: torch.dtype

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether a state dict with these keys is of this family."""

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> the module's; the same where a family does not say otherwise."""
        return dict(state_dict)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor], facts: Mapping[str, object]) -> object:
        """Sizes from the shapes of an official state dict and what else is known of the file.

        A dataclass; its ``depth``, where it has one, is the number of ``blocks``.
        KeyError where a tensor is missing, ValueError where the sizes fit no release.
        """

    def defaults(self) -> Settings:
        """The official sampling settings."""

    def schedule(self, aspect: float = 1.0, pixels: str | None = None) -> Schedule:
        """The token maps of an image (height / width, a budget of ``schedule.PIXELS``).

        ValueError where the model cannot make one.
        """

    def start(self, schedule: Schedule, maps: int, guided: bool) -> State:
        """State for new images, of which the first so many maps are drawn.

        guided: adds an unconditional row to every image's.
        """

    def condition(self, state: State, condition: Condition) -> None:
        """Set what the images show; ValueError where the model cannot read it."""

    def embed(
        self, state: State, features: Tensor | None, scale: Scale, changes: Sequence[Change] = ()
    ) -> Tensor:
        """Input of one map, (rows, n, C) float32; features (B, n, D), None for the first map.

        changes: made before the embeddings of the scale and its places are added.
        """

    def block(
        self, state: State, i: int, scale: Scale, x: Tensor, places: Tensor | None = None
    ) -> Tensor:
        """Block i on one map, (rows, n, C); places (rows, n) in it, where it is not the whole."""

    def logits(self, state: State, x: Tensor) -> Tensor:
        """(rows, n, C) -> (rows, n, channels) float32; fewer rows are the state's first ones."""
