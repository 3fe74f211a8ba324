"""The state of a batch between maps, and the interface of methods that change how it is sampled.

``Method.begin`` takes a ``Context``, a batch before its first map, and returns the method for this
batch; the other hooks are called at every map, and a method overrides those that it needs. A method
keeps no state from one batch to the next. The sampler knows a single method: ``Methods``.

Feature maps have B rows, one an image, or 2B while a map is guided: B conditional rows, then the B
unconditional ones of the same images. From the first map on after the last guided one, only the
conditional rows are left. (Without any guided map there are never more.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..conditions import Condition
from ..models.family import State
from ..schedule import Scale, Schedule
from ..settings import Guidance


class Step(NamedTuple):
    """The result of one map."""

    scale: Scale
    logits: Tensor  # (B, n, channels) after guidance and temperature
    tokens: Tensor  # (B, n), or bits (B, n, bits)
    f_hat: Tensor  # (B, D, H, W), the sum so far


@dataclass
class BatchState:
    """A batch between two maps."""

    model: State  # with the keys and values of the maps so far
    condition: Condition | None = None  # the one that is set in the model's state
    f_hat: Tensor | None = None  # (B, D, H, W)
    features: Tensor | None = None  # (B, n, D), the next map's input

    def fork(self) -> BatchState:
        """A copy that goes on without changing this one; see ``State.fork``."""
        return replace(self, model=self.model.fork())

    def drop_unconditional(self) -> None:
        """Stop guidance for the maps that follow."""
        self.model.drop_unconditional()
        self.condition = None


Advance = Callable[[BatchState, Scale, Guidance], tuple[BatchState, Step]]
"""A function that draws one map from a state, and uses it up: returns the next state."""


@dataclass(frozen=True, eq=False)
class Context:
    """A batch before its first map, or one image of it with ``exact_batch``."""

    schedule: Schedule
    images: Sequence[int]  # indices of these images in the whole batch
    seeds: Sequence[int]  # of these images
    condition: Condition
    plan: Sequence[Guidance]  # of each map that is drawn: the schedule's first ones, mostly all
    choices: int  # of a token; of a bit, 2
    depth: int  # blocks of the model

    @property
    def last_guided(self) -> int:
        """The index of the last map with guidance, and so with 2B rows; -1 if there is none."""
        return max((k for k, (g, _) in enumerate(self.plan) if g != 1), default=-1)

    @property
    def guided(self) -> bool:
        """Whether feature maps have 2B rows at first."""
        return self.last_guided >= 0


class Method:
    """The base class: it changes nothing, as every hook returns its argument."""

    name = ""  # a chain has at most one method of each name
    order = 0  # methods with lower numbers act first; see ``Methods``
    together = False  # whether the images of a batch must be computed together

    def drawn(self, schedule: Schedule) -> Schedule:
        """Those of a schedule's maps that are drawn, counted from the first."""
        return schedule

    def memory(self, cache: float, token: float, schedule: Schedule, depth: int) -> float:
        """Bytes of the keys, values and features that are kept while an image is drawn.

        cache: bytes of all keys and values without the method. token: bytes of the features of one
        token of every row, float32. depth: the number of blocks.
        """
        return cache

    def begin(self, context: Context) -> Method:
        """The method for this batch. Raises UserError if the method does not fit it."""
        return self

    def text(self, condition: Condition, scale: Scale) -> Condition:
        """The condition of one map. Return the same object if it is unchanged, to save time."""
        return condition

    def features(self, x: Tensor, scale: Scale) -> Tensor:
        """The input (rows, n, C), float32, before the scale and position embeddings are added."""
        return x

    def input(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's input feature map (rows, n, C), float32."""
        return x

    def block(self, run: Callable[..., Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        """Block i on one map: call ``run`` on (rows, n, C) and return its output.

        The method that acts first may call it on some tokens only, with their indices (rows, m).
        """
        return run(x)

    def output(self, x: Tensor, scale: Scale) -> Tensor:
        """The transformer's output feature map (rows, n, C), float32."""
        return x

    def logits(self, logits: Tensor, scale: Scale) -> Tensor:
        """Logits (B, n, channels) after guidance and temperature."""
        return logits

    def image_logits(self, logits: Tensor, scale: Scale, before: Sequence[Tensor]) -> Tensor:
        """One image's logits (1, n, m, choices): m bits a token, or one codebook index.

        before: the tokens (1, n, m) that the images before it in the batch drew at this map.
        """
        return logits

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        """The drawn tokens (B, n) or bits (B, n, bits)."""
        return tokens

    def step(
        self, advance: Advance, batch: BatchState, scale: Scale, guidance: Guidance
    ) -> tuple[BatchState, Step]:
        """One whole map: call ``advance`` on the state, or several times on forks of it."""
        return advance(batch, scale, guidance)


def folded(hook: str) -> Callable:
    """A hook of ``Methods``: each method's own changes what the one before it returned."""

    def fold(self: Methods, x: object, *rest: object) -> object:
        for method in self.methods:
            x = getattr(method, hook)(x, *rest)
        return x

    return fold


class Methods(Method):
    """Several methods as one: each hook is that of all of them, in order.

    FastVAR (-1), which may leave out tokens of a block; ScaleKV (0); text noise (1), SSR and SAR
    (2), which change what the model reads; kept tokens (3), which replace what was drawn; adaptive
    scaling (4) and repulsion (5) of the logits; path search (6), which draws with all of these.
    """

    def __init__(self, methods: Sequence[Method]):
        self.methods = tuple(sorted(methods, key=lambda method: method.order))

    drawn, memory = folded("drawn"), folded("memory")
    text, features, input, output = map(folded, ("text", "features", "input", "output"))
    logits, image_logits, tokens = map(folded, ("logits", "image_logits", "tokens"))

    @property
    def together(self) -> bool:
        return any(method.together for method in self.methods)

    def begin(self, context: Context) -> Methods:
        acting = Methods(())
        acting.methods = tuple(method.begin(context) for method in self.methods)
        return acting

    def block(self, run: Callable[..., Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        for method in self.methods:
            run = partial(method.block, run, i, scale)
        return run(x)

    def step(
        self, advance: Advance, batch: BatchState, scale: Scale, guidance: Guidance
    ) -> tuple[BatchState, Step]:
        for method in self.methods:
            advance = partial(method.step, advance)
        return advance(batch, scale, guidance)
