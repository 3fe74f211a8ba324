"""The interface of all model families."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..conditions import Condition
from ..schedule import Scale, Schedule
from ..settings import Settings
from ..tokens import TokenKind
from .blocks import KVCache


@dataclass
class State:
    """What a model remembers of one batch of images from map to map."""

    guided: bool  # whether the second half of the rows is unconditional
    caches: list[KVCache]  # of each block
    schedule: Schedule
    condition: Tensor | None = None  # (rows, C) float32
    terms: Tensor | None = None  # (rows, 1, 6, C) float32, from the condition, if blocks share them
    prepared: dict[int, NamedTuple] = field(default_factory=dict)  # by block, from the condition

    def fork(self) -> State:
        """A copy that goes on without changing this one's contents.

        Both caches share one allocation and write after the filled part, so use only one at a time:
        once another one goes on, earlier copies are no longer valid.
        """
        caches = [copy(cache) for cache in self.caches]
        return replace(self, caches=caches, prepared=dict(self.prepared))

    def drop_unconditional(self) -> None:
        """Drop the unconditional rows; the condition must then be set again."""
        self.guided = False
        for cache in self.caches:
            cache.halve()


class Family(nn.Module):
    """A transformer; ``models.FAMILIES`` lists all of them.

    Constructor arguments: the result of ``read_config``, operations (a module with the layer
    classes), attention (the kernel), device, dtype (of the layers' computation).
    """

    name: str
    reads: type[Condition]  # the kind of condition
    state: type[State] = State
    edits: bool = False  # whether it edits a source image, which its condition must have
    token_kind: TokenKind
    aspects: Collection[float] = (1.0,)  # height / width of the images that it can make
    budgets: Collection[str | None] = (None,)  # of pixels; None: it has one size only
    depth: int  # number of blocks
    width: int  # channels C of the blocks
    dtype: torch.dtype
    word_embed: nn.Module  # a token's features -> C
    pos_start: Tensor  # (1, 1, C), of the first map
    head_nm: nn.Module  # x, condition -> the normed x
    head: nn.Module  # C -> channels

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether a state dict with these keys is of this family."""
        raise NotImplementedError

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> the module's; the same unless a family overrides this."""
        return dict(state_dict)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor], facts: Mapping[str, object]) -> object:
        """Read the sizes off an official state dict's shapes and the facts of its file.

        Returns a dataclass; its ``depth``, if it has one, is the number of ``blocks``. Raises
        KeyError if a tensor is missing, UserError if the sizes fit no release.
        """
        raise NotImplementedError

    def defaults(self) -> Settings:
        """The official sampling settings."""
        raise NotImplementedError

    def schedule(self, aspect: float = 1.0, pixels: str | None = None) -> Schedule:
        """The token maps of an image; UserError if the model cannot make it.

        aspect: height / width. pixels: a budget of ``schedule.PIXELS``, None for the model's own.
        """
        raise NotImplementedError

    def start(self, schedule: Schedule, maps: int, guided: bool) -> State:
        """The state of a new batch.

        maps: how many of the schedule's maps are drawn. guided: whether each image also has an
        unconditional row; all of these come after the conditional rows.
        """
        caches = [KVCache(maps - 1, schedule[maps - 1].begin) for _ in range(self.depth)]
        return self.state(guided, caches, schedule)

    def condition(self, state: State, condition: Condition) -> None:
        """Set what the images show; UserError if the model cannot read it."""
        raise NotImplementedError

    def embed(self, state: State, features: Tensor | None) -> Tensor:
        """The input of one map, (rows, n, C) float32; features (B, n, D), None for the first map.

        The scale and position embeddings are not in it yet: see ``positions``.
        """
        if features is None:
            return state.condition.unsqueeze(1) + self.pos_start.to(state.condition)
        x = self.word_embed(features.to(self.dtype)).float()
        return torch.cat((x, x)) if state.guided else x

    def positions(self, state: State, scale: Scale) -> Tensor:
        """The scale and position embeddings of one map, ([1,] 1 or n, C) float32."""
        raise NotImplementedError

    def block(
        self, state: State, i: int, scale: Scale, x: Tensor, token_index: Tensor | None = None
    ) -> Tensor:
        """Block i on one map, (rows, n, C).

        token_index: (rows, n), of the tokens in the map; None if x has all of them.
        """
        raise NotImplementedError

    def logits(self, state: State, x: Tensor) -> Tensor:
        """(rows, n, C) -> (rows, n, channels) float32; x may have only the first rows."""
        return self.head(self.head_nm(x, state.condition[: x.shape[0]]))
