"""How fast the released sizes are, with random weights: alone, with methods, beside an original."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from diversevar_core.errors import UserError
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.methods.ssr_sar import PAPER, reweight
from diversevar_core.methods.starts import Starts, choose_starts
from diversevar_core.models.compiled import compile_blocks
from diversevar_core.models.packed import pack

from . import meter
from .card import GB, Card, Line
from .originals import Original, original, shape_of
from .shapes import Bench, build, condition_of

NOISE = 1e-4  # largest allowed difference of two decoders' images, of a range of 2
TRIES = 5
HELD: dict[str, Bench] = {}  # the one model in memory


def shapes(card: Card) -> tuple[str, ...]:
    """What is measured, the most important first."""
    if card.shape:
        return (card.shape,)
    return ("infinity-tiny",) if card.small else ("infinity-2b", "infinity-8b")


def bench_of(card: Card, shape: str) -> Bench | None:
    """The model of this shape, as the command line would run it; None if it does not fit."""
    if shape not in HELD:
        HELD.clear()
        meter.free_memory(card.device)
        weights, asked = build(shape, "meta", meter.half(card.device)).needs()
        if weights + asked > meter.memory(card.device)[0]:
            return None
        HELD[shape] = build(shape, card.device, meter.half(card.device))
        if card.small:
            pack(HELD[shape].model)
    return HELD[shape]


def timed(card: Card, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of some calls of each, by turns, after one that is not counted."""
    began = time.time()
    for work in works:
        work()
    tries = int(card.left / 10 / (time.time() - began))
    tries = range(min(max(tries, 1), TRIES))
    turns = [[meter.seconds(work, card.device) for work in works] for _ in tries]
    return [list(times) for times in zip(*turns, strict=True)]


def image(card: Card) -> Iterator[Line]:
    """One image of the first shape, map by map."""
    yield from stages(card, shapes(card)[0])


def larger(card: Card) -> Iterator[Line]:
    """One image of the other shapes."""
    for shape in shapes(card)[1:]:
        yield from stages(card, shape)


def stages(card: Card, shape: str) -> Iterator[Line]:
    """Every map and the decoder; here the device is waited for after each, in a batch it is not."""
    bench = bench_of(card, shape)
    if bench is None:
        yield Line(f"{shape}, batch 1", "skipped", "memory is not enough")
        return

    line = in_batch(card, bench, 1)
    yield line
    if not line.numbers:
        return

    def run(measure: Callable[[Callable], float]) -> list[float]:
        steps, last = bench.steps(), []
        figures = [measure(lambda: last.append(next(steps))) for _ in bench.schedule]
        return [*figures, measure(lambda: bench.decode(last[-1].f_hat))]

    times = []
    timed(card, lambda: times.append(run(partial(meter.seconds, device=card.device))))
    seconds = [median(column) for column in zip(*times[1:], strict=True)]
    rate = meter.ceilings(card.device, meter.half(card.device))[0]
    names = [f"map {scale.h} x {scale.w}" for scale in bench.schedule] + ["decoder"]
    for name, took, flops in zip(names, seconds, run(meter.flops), strict=True):
        shown = f"{took:.4f} s"
        if not card.small:  # where torch counts all
            shown += f", {flops / GB:.1f} GFLOP, {flops / took / rate:.0%} of a product's rate"
        yield Line(f"{shape}, {name}", "figure", shown, {"seconds": took})
    launched, waits = meter.launches(bench.sample)
    shown = f"{sum(seconds[:-1]):.3f} s; {launched or '?'} kernels launched, {waits} waits for them"
    yield Line(f"{shape}, sampling", "figure", shown, {"seconds": sum(seconds[:-1])})


def in_batch(card: Card, bench: Bench, batch: int) -> Line:
    """Images in a batch, decoded one by one."""
    what = f"{bench.name}, batch {batch}"
    draw = partial(timed, card, lambda: bench.decode(bench.sample(batch)[1]))
    if (times := meter.fits(draw, card.device)) is None:
        return Line(what, "skipped", "memory is not enough")
    took = median(times[0])
    numbers = {"seconds": took, "a minute": 60 * batch / took}
    return Line(what, "figure", f"{took:.2f} s, {60 * batch / took:.1f} images a minute", numbers)


def batches(card: Card) -> Iterator[Line]:
    """Images a minute."""
    bench = bench_of(card, shapes(card)[0])
    for batch in (4, 8) if bench else ():
        yield in_batch(card, bench, batch)


def methods(card: Card) -> Iterator[Line]:
    """What methods cost or save."""
    bench = bench_of(card, shapes(card)[0])
    if bench is None:
        return
    waits = meter.launches(bench.sample)[1]
    ways = {
        "SSR + SAR": {"methods": [PAPER]},
        "FastVAR": {"methods": [FastVAR()]},
        "ScaleKV": {"methods": [ScaleKV()]},
        "guidance_end": {"guidance_end": bench.schedule[-5].side},
    }
    for name, how in ways.items():
        work = partial(bench.sample, **how)
        plain, changed = map(median, timed(card, bench.sample, work))
        more = 100 * (changed / plain - 1)
        waiting = meter.launches(work)[1] - waits
        shown = f"{changed:.3f} s, {more:+.0f} % of {plain:.3f}; {waiting} more waits"
        numbers = {"seconds": changed, "%": more, "waits": waiting}
        yield Line(f"{bench.name}, {name}", "figure", shown, numbers)
    how = bench.model, bench.vae, condition_of(bench, 8), bench.schedule, bench.settings
    starts, plain = timed(card, lambda: choose_starts(Starts(64), 8, *how, 0), bench.sample)
    shown = f"{median(starts):.3f} s, {100 * median(starts) / median(plain):.0f} % of one image"
    yield Line(f"{bench.name}, 64 starts", "figure", shown, {"seconds": median(starts)})
    x = torch.randn(2, 36, bench.model.width, device=card.device)
    svd = partial(torch.linalg.svd, x, full_matrices=False)
    ours, theirs = map(median, timed(card, lambda: reweight(x, -1.0), svd))
    shown = f"{1000 * ours:.2f} ms by eigenvectors, {1000 * theirs:.2f} by singular values"
    yield Line("SSR of a map of side 6", "figure", shown, {"seconds": ours, "svd": theirs})


def pair(card: Card, batch: int) -> tuple[Bench, Original]:
    """A model, and the original with its weights."""
    HELD.clear()
    meter.free_memory(card.device)
    shape = card.shape or shape_of(card.against, card.small)
    bench = build(shape, card.device, meter.half(card.device))
    theirs = original(card.against, bench, batch)
    if card.small:
        pack(bench.model)
    return bench, theirs


def against(card: Card) -> Iterator[Line]:
    """The original with the same weights, by turns: the same tokens, and time."""
    for batch in (1, 4) if card.against else ():
        bench, theirs = pair(card, batch)
        yield from compared(card, bench, theirs, batch)


def compared(card: Card, bench: Bench, theirs: Original, batch: int) -> Iterator[Line]:
    """Tokens, images and times of a batch, ours and theirs."""
    what = f"{bench.name} and the original, batch {batch}"
    sample = partial(bench.sample, batch, shared=True)
    (tokens, f_hat), (their_tokens, _) = sample(), theirs.sample()
    pairs = zip(tokens, their_tokens, strict=True)
    equal = torch.cat([(a.long() == b.long().view_as(a)).flatten() for a, b in pairs])
    share = equal.float().mean().item()
    images = bench.vae.decode(f_hat).clamp(-1, 1), theirs.decode(f_hat).clamp(-1, 1)
    off = (images[0] - images[1]).abs().max().item()
    good = "pass" if share == 1 and off <= NOISE else "fail"
    result = good if bench.model.dtype == torch.float32 else "figure"  # half precision rounds
    yield Line(what, result, f"{share:.2%} of the tokens equal, images off by {off:.0e}")
    for name, works in (
        ("sampling", (sample, theirs.sample)),
        ("decoder", (partial(bench.vae.decode, f_hat), partial(theirs.decode, f_hat))),
    ):
        ours, other = timed(card, *works)
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        shown = f"{median(ours):.3f} s and {median(other):.3f}: {median(ratios):.2f} "
        shown += f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        numbers = {"seconds": median(ours), "theirs": median(other), "ratio": median(ratios)}
        yield Line(f"{what}, {name}", "figure", shown, numbers)


def compiled(card: Card) -> Iterator[Line]:
    """torch.compile: time, and kernels launched."""
    HELD.clear()
    meter.free_memory(card.device)
    bench = build(shapes(card)[0], card.device, meter.half(card.device))
    before, (plain,) = meter.launches(bench.sample)[0], timed(card, bench.sample)
    try:
        compile_blocks(bench.model, card.device)
    except UserError as error:
        yield Line(f"{bench.name}, compiled", "skipped", str(error))
        return
    (changed,) = timed(card, bench.sample)
    more, after = 100 * (median(changed) / median(plain) - 1), meter.launches(bench.sample)[0]
    shown = f"{median(changed):.3f} s, {more:+.0f} % of {median(plain):.3f}; "
    shown += f"{before} kernels launched before, {after} now"
    yield Line(f"{bench.name}, compiled", "figure", shown, {"seconds": median(changed), "%": more})


CHECKS = {
    "one image": image,
    "the original": against,
    "methods": methods,
    "batches": batches,
    "larger": larger,
    "compiled": compiled,
}
