"""Record singular values of feature maps before and after another method acts on them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling.method import Context, Method
from ..schedule import Scale

MODEL = -1  # the block number that stands for the whole transformer


class Place(NamedTuple):
    """Where a feature map is: at a map's side, before (``reads``) or after a block."""

    side: int
    block: int
    reads: bool


class Spectra(Method):
    """Run ``method`` and record singular values of the first image's feature maps.

    values: place -> singular values (min(n, C),) before and after the method, descending, for maps
    of these ``sides`` and these ``blocks``. Of the method, only the hooks that change feature maps
    are called.
    """

    def __init__(self, method: Method, sides: Collection[int], blocks: Collection[int]):
        self.method, self.sides, self.blocks = method, sides, blocks
        self.values: dict[Place, tuple[Tensor, Tensor]] = {}

    def begin(self, context: Context) -> Spectra:
        self.method = self.method.begin(context)
        return self

    def note(self, place: Place, before: Tensor, after: Tensor) -> None:
        if place.side in self.sides and place.block in {MODEL, *self.blocks}:
            spectra = (torch.linalg.svdvals(x[0].cpu().double()) for x in (before, after))
            self.values[place] = tuple(spectra)

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        return self.method.features(x, scale)

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        changed = self.method.input(x, scale)
        self.note(Place(scale.side, MODEL, True), x, changed)
        return changed

    def block(self, run: Callable[[Tensor], Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        written = []

        def watched(read: Tensor) -> Tensor:
            self.note(Place(scale.side, i, True), x, read)
            written.append(run(read))
            return written[0]

        changed = self.method.block(watched, i, scale, x)
        self.note(Place(scale.side, i, False), written[0], changed)
        return changed

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        changed = self.method.output(x, scale)
        self.note(Place(scale.side, MODEL, False), x, changed)
        return changed
