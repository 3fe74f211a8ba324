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


def fresh(card: Card, shape: str) -> Bench:
    """A new model, the only one in memory."""
    HELD.clear()
    meter.free_memory(card.device)
    return build(shape, card.device, meter.half(card.device))


def held(card: Card, shape: str) -> Bench | None:
    """The model of this shape, as the command line would run it; None if it does not fit."""
    if shape not in HELD:
        HELD.clear()
        meter.free_memory(card.device)
        if (
            sum(build(shape, "meta", meter.half(card.device)).needs())
            > meter.memory(card.device)[0]
        ):
            return None
        HELD[shape] = fresh(card, shape)
        if card.small:
            pack(HELD[shape].model)
    return HELD[shape]


def timed(card: Card, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of some calls of each, by turns, after one that is not counted."""
    began = time.time()
    for work in works:
        work()
    tries = min(max(int(card.left / 10 / (time.time() - began)), 1), TRIES)
    turns = [[meter.seconds(work, card.device) for work in works] for _ in range(tries)]
    return [list(times) for times in zip(*turns, strict=True)]


def in_batch(card: Card, bench: Bench, batch: int) -> Line:
    """Images in a batch, decoded one by one."""
    draw = partial(timed, card, lambda: bench.decode(bench.sample(batch)[1]))
    if (times := meter.fits(draw, card.device)) is None:
        return Line(f"{bench.name}, batch {batch}", "skipped", "memory is not enough")
    took = median(times[0])
    numbers = {"seconds": took, "a minute": 60 * batch / took}
    shown = f"{took:.2f} s, {60 * batch / took:.1f} images a minute"
    return Line(f"{bench.name}, batch {batch}", "figure", shown, numbers)


def stages(bench: Bench, measure: Callable[[Callable], float]) -> list[float]:
    """A measurement of every map of an image, and of the decoder."""
    steps, last = bench.steps(), []
    figures = [measure(lambda: last.append(next(steps))) for _ in bench.schedule]
    return [*figures, measure(lambda: bench.decode(last[-1].f_hat))]


def image(card: Card, which: slice) -> Iterator[Line]:
    """One image: in all, and every map and the decoder, after each of which the device waits."""
    for shape in shapes(card)[which]:
        bench = held(card, shape)
        line = bench and in_batch(card, bench, 1)
        yield line or Line(f"{shape}, batch 1", "skipped", "memory is not enough")
        if not line or not line.numbers:
            continue
        measure, turns = partial(meter.seconds, device=card.device), []
        timed(card, lambda: turns.append(stages(bench, measure)))  # noqa: B023
        seconds = [median(times) for times in zip(*turns[1:], strict=True)]
        rate = meter.ceilings(card.device, bench.model.dtype)[0]
        names = [f"map {scale.h} x {scale.w}" for scale in bench.schedule] + ["decoder"]
        for name, took, flops in zip(names, seconds, stages(bench, meter.flops), strict=True):
            shown = f"{took:.4f} s"
            if not card.small:  # where torch counts all
                shown += f", {flops / GB:.1f} GFLOP, {flops / took / rate:.0%} of a product's rate"
            yield Line(f"{shape}, {name}", "figure", shown, {"seconds": took})
        launched, waits = meter.launches(bench.sample)
        shown = f"{sum(seconds[:-1]):.3f} s; {launched or '?'} kernels, {waits} waits for them"
        yield Line(f"{shape}, sampling", "figure", shown, {"seconds": sum(seconds[:-1])})


def batches(card: Card) -> Iterator[Line]:
    """Images a minute."""
    bench = held(card, shapes(card)[0])
    for batch in (4, 8) if bench else ():
        yield in_batch(card, bench, batch)


def methods(card: Card) -> Iterator[Line]:
    """What methods cost or save."""
    bench = held(card, shapes(card)[0])
    if bench is None:
        return
    waits = meter.launches(bench.sample)[1]
    for name, changes in {
        "SSR + SAR": {"methods": [PAPER]},
        "FastVAR": {"methods": [FastVAR()]},
        "ScaleKV": {"methods": [ScaleKV()]},
        "guidance_end": {"guidance_end": bench.schedule[-5].side},
    }.items():
        work = partial(bench.sample, **changes)
        shown, numbers = beside(card, bench.sample, work)
        shown += f"; {meter.launches(work)[1] - waits} more waits"
        yield Line(f"{bench.name}, {name}", "figure", shown, numbers)
    how = bench.model, bench.vae, condition_of(bench, 8), bench.schedule, bench.settings
    shown, numbers = beside(card, bench.sample, lambda: choose_starts(Starts(64), 8, *how, 0))
    yield Line(f"{bench.name}, 64 starts in place of an image", "figure", shown, numbers)
    x = torch.randn(2, 36, bench.model.width, device=card.device)
    svd = partial(torch.linalg.svd, x, full_matrices=False)
    shown, numbers = beside(card, svd, lambda: reweight(x, -1.0))
    yield Line("SSR of a map in place of an SVD", "figure", shown, numbers)


def beside(card: Card, usual: Callable, changed: Callable) -> tuple[str, dict[str, float]]:
    """How long a call takes, and how much more than another one, in words and numbers."""
    before, after = map(median, timed(card, usual, changed))
    more = 100 * (after / before - 1)
    return f"{after:.4g} s, {more:+.0f} % of {before:.4g}", {"seconds": after, "%": more}


def compiled(card: Card) -> Iterator[Line]:
    """torch.compile: time, and kernels launched."""
    if held(card, shapes(card)[0]) is None:
        return
    bench = fresh(card, shapes(card)[0])
    (usual,), kernels = timed(card, bench.sample), meter.launches(bench.sample)[0]
    try:
        compile_blocks(bench.model, card.device)
    except UserError as error:
        yield Line(f"{bench.name}, compiled", "skipped", str(error))
        return
    (changed,), fewer = timed(card, bench.sample), meter.launches(bench.sample)[0]
    shown = f"{median(changed):.4g} s, not {median(usual):.4g}; "
    shown += f"{fewer or '?'} kernels, not {kernels or '?'}"
    yield Line(f"{bench.name}, compiled", "figure", shown, {"seconds": median(changed)})


def pair(card: Card, batch: int) -> tuple[Bench, Original]:
    """A model, and the original with its weights."""
    bench = fresh(card, card.shape or shape_of(card.against, card.small))
    theirs = original(card.against, bench, batch)
    if card.small:
        pack(bench.model)
    return bench, theirs


def against(card: Card) -> Iterator[Line]:
    """The original with the same weights, by turns: the same tokens and images, and time."""
    for batch in (1, 4) if card.against else ():
        bench, theirs = pair(card, batch)
        what = f"{bench.name} and the original, batch {batch}"
        sample = partial(bench.sample, batch, shared=True)
        (tokens, f_hat), (others, _) = sample(), theirs.sample()
        maps = zip(tokens, others, strict=True)
        equal = torch.cat([(a.long() == b.long().view_as(a)).flatten() for a, b in maps])
        share = equal.float().mean().item()
        images = bench.vae.decode(f_hat).clamp(-1, 1), theirs.decode(f_hat).clamp(-1, 1)
        off = (images[0] - images[1]).abs().max().item()
        result = "pass" if share == 1 and off <= NOISE else "fail"
        if bench.model.dtype != torch.float32:  # both round, in other places
            result = "figure"
        yield Line(what, result, f"{share:.2%} of the tokens equal, images off by {off:.0e}")
        for name, works in {
            "sampling": (sample, theirs.sample),
            "decoder": (partial(bench.vae.decode, f_hat), partial(theirs.decode, f_hat)),
        }.items():
            ours, other = timed(card, *works)
            ratios = sorted(a / b for a, b in zip(ours, other, strict=True))
            shown = f"{median(ours):.3f} s and {median(other):.3f}: {median(ratios):.2f} "
            shown += f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]"
            numbers = {"seconds": median(ours), "ratio": median(ratios)}
            yield Line(f"{what}, {name}", "figure", shown, numbers)


CHECKS = {
    "one image": partial(image, which=slice(1)),
    "the original": against,
    "methods": methods,
    "batches": batches,
    "larger": partial(image, which=slice(1, None)),
    "compiled": compiled,
}
