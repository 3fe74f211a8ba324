"""Peak memory above the weights, beside what ComfyUI is asked to keep free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from diversevar_core.job import PLAIN, Chain
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.scalekv import ScaleKV

from . import meter
from .card import Card, Line
from .fast import GB, bench_of, pair, shapes

CHAINS = {"ScaleKV": Chain((ScaleKV(),)), "FastVAR": Chain((FastVAR(),))}


def peak(card: Card, what: str, work: Callable[[], object], asked: float = 0.0) -> Line:
    """A call's peak, after one that makes torch allocate its own buffers."""
    size = meter.fits(lambda: (work(), meter.peak(work, card.device))[1], card.device)
    if size is None:
        return Line(what, "figure", "memory is not enough")
    shown, numbers = f"{size / GB:.4f} GB", {"GB": size / GB}
    if asked:
        numbers["%"] = 100 * (asked / size - 1)
        shown += f", and {asked / GB:.4f} asked for: {numbers['%']:+.0f} %"
    return Line(what, "figure", shown, numbers)


def peaks(card: Card) -> Iterator[Line]:
    """Sampling, in a batch, and with methods, and the decoder."""
    for shape in shapes(card):
        bench = bench_of(card, shape)
        if bench is None:
            continue
        for name, batch, chain in (
            ("batch 1", 1, PLAIN),
            ("batch 4", 4, PLAIN),
            *((name, 1, chain) for name, chain in CHAINS.items()),
        ):
            work = partial(bench.sample, batch, chain.methods)
            asked = bench.needs(batch, chain)[1]
            yield peak(card, f"{shape}, {name}, peak", work, asked)
        yield peak(card, f"{shape}, decoder, peak", partial(bench.decode, bench.sample()[1]))


def against(card: Card) -> Iterator[Line]:
    """The original's."""
    for batch in (1, 4) if card.against else ():
        bench, theirs = pair(card, batch)
        for whose, sample, decode in (
            ("ours", partial(bench.sample, batch, shared=True), bench.vae.decode),
            ("the original's", theirs.sample, theirs.decode),
        ):
            what = f"{bench.name}, batch {batch}, {whose}"
            f_hat = sample()[1]
            yield peak(card, f"{what}, peak", sample)
            yield peak(card, f"{what}, decoder, peak", partial(decode, f_hat))


CHECKS = {"peaks": peaks, "the original's": against}
