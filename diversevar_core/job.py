"""One batch: choose seeds, sample, travel; the same for the nodes and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .conditions import Condition
from .errors import UserError, check_range
from .methods.keep import Keep
from .methods.starts import TOGETHER, Starts, choose_starts
from .methods.travel import sample_and_travel
from .models.family import Family
from .sampling.method import Method, Methods, Step
from .sampling.sampler import sample
from .schedule import Schedule
from .settings import Settings, guidance
from .vae.vae import VAE


@dataclass(frozen=True)
class Chain:
    """What is done in addition to plain sampling.

    methods: at most one of each kind. starts: how seeds are chosen; None: consecutive seeds.
    travel: the side up to which maps of the finished images are kept while the others are drawn
    again (``sample_and_travel``); None and 0: no second pass.
    """

    methods: tuple[Method, ...] = ()
    starts: Starts | None = None
    travel: int | None = None

    def __post_init__(self) -> None:
        if self.travel is not None:
            check_range("The side of scale travel", self.travel, 0)

    @property
    def names(self) -> list[str]:
        """The names of all that is in the chain."""
        starts = ["Diverse Seeds"] if self.starts else []
        travel = ["Scale Travel"] if self.travel is not None else []
        return [*(method.name for method in self.methods), *starts, *travel]

    def check_new(self, name: str) -> None:
        """Raise UserError if the chain has one of this name already."""
        if name and name in self.names:
            raise UserError(
                f"{name} is connected twice, and can act only once; remove one of them."
            )

    def add(self, method: Method) -> Chain:
        """The chain with one more method; UserError if it has one of its kind already."""
        self.check_new(method.name)
        return replace(self, methods=(*self.methods, method))

    def with_starts(self, starts: Starts) -> Chain:
        """The chain with chosen seeds; UserError if it has ``starts`` already."""
        self.check_new("Diverse Seeds")
        return replace(self, starts=starts)

    def with_travel(self, side: int) -> Chain:
        """The chain with scale travel; UserError if it has it already."""
        self.check_new("Scale Travel")
        return replace(self, travel=side)


PLAIN = Chain()


class Draw(NamedTuple):
    """A batch that is ready to be drawn."""

    seeds: list[int]  # of each image, 0 to 2**64 - 1
    maps: Schedule  # of the steps that ``steps`` yields, with travel of both passes
    steps: Iterator[Step]


def draw(
    model: Family,
    vae: VAE,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    chain: Chain = PLAIN,
    *,
    offsets: Sequence[int] | None = None,
    exact_batch: bool = False,
    ready: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Draw:
    """Choose the seeds, from ``seed`` on, now; the images are drawn while ``steps`` is iterated.

    offsets: image i's seed is ``seed + offsets[i]``, by default ``seed + i``, if starts do not
    choose it. ready: loads the models to the device; called before every group of candidates and
    before the images, as comparing candidates may load other models. progress: called with the
    number of candidates drawn so far. The other arguments are those of ``sample``. Raises UserError
    if seeds are to be chosen and the images have different conditions.
    """
    task, count = (model, vae, condition, schedule, settings), len(condition)
    seeds = [seed + i for i in (range(count) if offsets is None else offsets)]
    if chain.starts and chain.starts.chooses(count):
        kept = [method for method in chain.methods if isinstance(method, Keep)]
        if not (condition.alike and all(keep.alike for keep in kept)):
            raise UserError(
                "Diverse starts compare images of the same prompt, class, image and mask, and here "
                "these differ within the batch; set starts to 1, or give one for the whole batch."
            )
        seeds = choose_starts(chain.starts, count, *task, seed, chain.methods, progress, ready)
    seeds = [seed % 2**64 for seed in seeds]
    ready()
    maps = Methods(chain.methods).drawn(schedule)

    def draw_all(methods: Sequence[Method]) -> Iterator[Step]:
        return sample(*task, seeds, methods=methods, exact_batch=exact_batch)

    if not chain.travel:
        return Draw(seeds, maps, draw_all(chain.methods))
    steps = sample_and_travel(draw_all, vae, schedule, chain.methods, chain.travel)
    return Draw(seeds, 2 * maps, steps)


def room(
    model: Family,
    schedule: Schedule,
    settings: Settings,
    batch: int,
    chain: Chain = PLAIN,
    sources: int = 0,
) -> float:
    """Bytes that a batch needs besides the weights, which a host keeps free for it.

    chain: ScaleKV needs less memory; diverse starts draw more images, but only their first maps.
    (The candidates of a path search share their caches.) sources: number of source images, 1 if
    all images share one.
    """
    guided = any(g != 1 for g, _ in guidance(settings, schedule))
    methods, starts = Methods(chain.methods), chain.starts
    drawn = methods.drawn(schedule)
    stages = [(batch, drawn)]
    if starts and starts.chooses(batch):
        first = [scale for scale in drawn if scale.side <= starts.side] or drawn[:1]
        stages.append((min(starts.candidates, TOGETHER), first))
    source = sources * schedule[-1].tokens
    return max(room_of(model, schedule, maps, guided, n, methods, source) for n, maps in stages)


def room_of(
    model: Family,
    schedule: Schedule,
    maps: Schedule,
    guided: bool,
    batch: int,
    methods: Methods,
    source: int,
) -> float:
    """``room`` for these maps: keys and values, and the last map's activations.

    source: number of tokens of all source images.
    """
    width, last, cached = model.width, maps[-1].tokens, maps[-1].begin
    rows = (1 + guided) * batch
    pair = 2 * width * model.dtype.itemsize  # the key and value of one token in one block
    token = 4 * rows * width  # the features of one token of every row, float32
    cache = methods.memory(rows * cached * model.depth * pair, token, schedule, model.depth)
    cache += (1 + guided) * source * model.depth * pair
    work = 8 * last * token
    if source:  # one block's keys and values, joined with the source's
        work += rows * (cached + 2 * last) * pair
    return cache + work
