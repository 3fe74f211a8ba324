"""Peak memory above the weights, beside what ComfyUI is asked to keep free."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import partial

from diversevar_core.job import PLAIN, Chain
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.scalekv import ScaleKV

from . import meter
from .card import GB, Card, Line
from .fast import held, pair, shapes

M_MMAP_THRESHOLD = -3  # of malloc.h
CASES = {
    "batch 1": (1, PLAIN),
    "batch 4": (4, PLAIN),
    "ScaleKV": (1, Chain((ScaleKV(),))),
    "FastVAR": (1, Chain((FastVAR(),))),
}


def peak(card: Card, what: str, work: Callable[[], object], asked: float = 0.0) -> Line:
    """A call's peak, after one in which torch allocates buffers of its own."""
    if card.small and sys.platform != "linux":
        return Line(f"{what}, peak", "skipped", "only Linux tells it of a CPU's process")
    size = meter.fits(lambda: (work(), meter.peak(work, card.device))[1], card.device)
    if not size:
        return Line(f"{what}, peak", "skipped", "memory is not enough")
    numbers = {"GB": size / GB} | ({"%": 100 * (asked / size - 1)} if asked else {})
    shown = f"; {asked / GB:.4f} asked for: {numbers['%']:+.0f} %" if asked else ""
    return Line(f"{what}, peak", "figure", f"{size / GB:.4f} GB{shown}", numbers)


def ours(card: Card) -> Iterator[Line]:
    """Sampling in batches and with methods, and the decoder."""
    for shape in shapes(card):
        bench = held(card, shape)
        if bench is None:
            continue
        for name, (batch, chain) in CASES.items():
            work = partial(bench.sample, batch, chain.methods)
            yield peak(card, f"{shape}, {name}", work, bench.needs(batch, chain)[1])
        f_hat = bench.sample()[1]
        yield peak(card, f"{shape}, decoder", partial(bench.decode, f_hat))


def theirs(card: Card) -> Iterator[Line]:
    """The same of an original, beside ours."""
    for batch in (1, 4) if card.against else ():
        bench, original = pair(card, batch)
        for whose, sample, decode in (
            ("ours", partial(bench.sample, batch, shared=True), bench.vae.decode),
            ("the original's", original.sample, original.decode),
        ):
            f_hat = sample()[1]
            yield peak(card, f"{bench.name}, batch {batch}, {whose}", sample)
            yield peak(card, f"{bench.name}, {batch} decoded, {whose}", partial(decode, f_hat))


CHECKS = {"ours": ours, "the original's": theirs}
if sys.platform == "linux":  # return freed memory at once, so that a peak is of what is needed
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
