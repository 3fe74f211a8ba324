"""Time, operations and memory of every stage of an image, alone or against an original."""

from __future__ import annotations

import json
import multiprocessing
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch

from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.methods.ssr_sar import PAPER
from diversevar_core.models.compiled import compile_blocks
from diversevar_core.models.packed import pack
from diversevar_core.sampling.method import Step
from diversevar_core.sampling.sampler import sample

from . import meter
from .originals import original
from .shapes import Sampled, Side, build, condition

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEED = 0
NOISE = 1e-4  # largest allowed difference of two decoders' images, of a range of 2


@dataclass(frozen=True)
class Bench:
    """One model on one device, and how it is sampled."""

    ours: Side
    steps: Callable[[], Iterator[Step]]
    theirs: Side | None


def prepare(args: Namespace) -> Bench:
    """Build the model of the options, and the original with the same weights if one is given."""
    torch.set_grad_enabled(False)
    files = (args.model, args.vae) if args.model else None
    model, tokenizer = build(args.shape, args.device, DTYPES[args.dtype], files)
    schedule = model.schedule(1.0, args.pixels)
    settings = replace(model.defaults(), guidance_end=args.guidance_end)
    what = condition(model, args.batch, schedule[-1], args.device)
    methods = [PAPER] if args.diversity else []
    methods += [FastVAR()] if args.fastvar else []
    methods += [ScaleKV()] if args.scalekv else []
    seeds, shared = range(SEED, SEED + args.batch), args.against is not None

    def steps() -> Iterator[Step]:
        return sample(model, tokenizer, what, schedule, settings, seeds, shared, methods)

    def run() -> Sampled:
        tokens = []
        for step in steps():
            tokens.append(step.tokens)
        return tokens, step.f_hat

    theirs = None
    if args.against is not None:
        theirs = original(args.against, model, tokenizer, what, schedule, settings, SEED)
    if args.compile:
        compile_blocks(model, args.device)
    elif args.device == "cpu":
        pack(model)
    return Bench(Side("ours", run, tokenizer.decode), steps, theirs)


def stages(bench: Bench, args: Namespace) -> list[dict]:
    """Every map and the decoder: median time, launches, FLOPs and bytes.

    Counts are of uncompiled code, as torch does not compile under a dispatch mode.
    """
    flops_s, bytes_s = meter.ceilings(args.device, DTYPES[args.dtype])
    names, times = [], []
    for _ in range(args.tries + 1):  # the first is not counted
        steps, one, more = bench.steps(), [], True
        while more:
            result: list[Step | None] = []
            took = meter.seconds(lambda: result.append(next(steps, None)), args.device)  # noqa: B023
            more = result[0] is not None
            if more:
                last = result[0]
                one.append((f"map {last.scale.h} x {last.scale.w}", took))
        one.append(("decode", meter.seconds(lambda: bench.ours.decode(last.f_hat), args.device)))  # noqa: B023
        names, times = [name for name, _ in one], [*times, [took for _, took in one]]
    counted, steps = [], bench.steps()
    for name in names:
        with meter.Counts() as counts:
            bench.ours.decode(last.f_hat) if name == "decode" else next(steps)
        counted.append(counts)
    rows = []
    for i, (name, counts) in enumerate(zip(names, counted, strict=True)):
        wall, busy = (median(each[i][part] for each in times[1:]) for part in (0, 1))
        rows.append({
            "stage": name, "seconds": wall, "cpu_seconds": busy,
            "launches": counts.launches.total(),
            "gflop": counts.flops / 1e9, "mb": counts.bytes / 1e6,
            "elementwise_mb": counts.elementwise / 1e6,
            "floor_seconds": max(counts.flops / flops_s, counts.bytes / bytes_s),
        })  # fmt: skip
    return rows


def peaks(args: Namespace) -> dict[str, int]:
    """Peak memory in bytes above the weights of sampling and of decoding, of either side."""
    meter.return_freed_memory()
    found = {}
    for which in ("ours", "theirs") if args.against else ("ours",):
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found |= fresh.apply(peak_of, (args, which))
    return found


def peak_of(args: Namespace, which: str) -> dict[str, int]:
    """``peaks`` of one side; call it in a new process."""
    bench = prepare(args)
    side: Side = getattr(bench, which)
    _, f_hat = side.sample()  # so that torch allocates its own buffers first
    before = meter.peak(args.device, reset=True)
    side.sample()
    sampling = meter.peak(args.device) - before
    before = meter.peak(args.device, reset=True)
    side.decode(f_hat)
    return {f"{which} sample": sampling, f"{which} decode": meter.peak(args.device) - before}


def compared(bench: Bench, args: Namespace) -> dict[str, dict]:
    """Ratios of our time to theirs, run by turns; ValueError where the outputs differ."""
    (tokens, f_hat), (their_tokens, theirs) = bench.ours.sample(), bench.theirs.sample()
    pairs = zip(tokens, their_tokens, strict=True)
    agree = [(a.long() == b.long().view_as(a)).float().mean().item() for a, b in pairs]
    if args.dtype == "float32" and min(agree) < 1:
        raise ValueError(f"The tokens differ: equal at every map, {agree}.")
    pictures = bench.ours.decode(f_hat).clamp(-1, 1), bench.theirs.decode(f_hat)
    if args.dtype == "float32" and (pictures[0] - pictures[1]).abs().max() > NOISE:
        raise ValueError("The decoded images differ.")
    found = {"equal tokens": {"by map": agree}}
    work = {
        "sample": (bench.ours.sample, bench.theirs.sample),
        "decode": (lambda: bench.ours.decode(f_hat), lambda: bench.theirs.decode(f_hat)),
    }
    for name, sides in work.items():
        turns = [[meter.seconds(side, args.device) for side in sides] for _ in range(args.tries)]
        for part, clock in enumerate(("wall", "cpu")):
            ours, theirs = ([turn[side][part] for turn in turns] for side in (0, 1))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            found[f"{name}, {clock} seconds"] = {
                "ours": ours, "theirs": theirs, "ratio": median(ours) / median(theirs),
                "spread": [min(ratios), max(ratios)],
            }  # fmt: skip
    return found


def table(rows: list[dict]) -> Iterator[str]:
    """The stages as Markdown."""
    yield "| stage | s | CPU s | floor s | launches | GFLOP | MB | of it elementwise |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "stage"}
    for row in [*rows, {"stage": "all"} | total]:
        yield (
            f"| {row['stage']} | {row['seconds']:.3f} | {row['cpu_seconds']:.3f} "
            f"| {row['floor_seconds']:.3f} | {row['launches']} | {row['gflop']:.1f} "
            f"| {row['mb']:.0f} | {row['elementwise_mb']:.0f} |"
        )


def plot(rows: list[dict], path: str) -> None:
    """One bar per stage: measured time, and the machine's limit."""
    from matplotlib import pyplot  # only where a plot is asked for

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    names = [row["stage"] for row in rows]
    axes.bar(names, [row["seconds"] for row in rows], label="measured", color="#d9541e")
    axes.bar(names, [row["floor_seconds"] for row in rows], label="floor", color="#8a8f98")
    axes.set_ylabel("seconds")
    axes.tick_params(axis="x", rotation=60)
    axes.legend()
    figure.savefig(path)


def run(args: Namespace) -> None:
    """Measure, print the tables, write JSON and plot where they are asked for."""
    bench, found = prepare(args), {"options": vars(args) | {"against": str(args.against)}}
    if args.compile:
        found["kernels"] = meter.kernels_of_graphs(bench.ours.sample)
        print("kernels of a block, graph by graph:", *found["kernels"])
    if bench.theirs is not None:
        found["against"] = compared(bench, args)
        for name, values in found["against"].items():
            if "ratio" in values:
                low, high = values["spread"]
                times = f"{median(values['ours']):.3f} / {median(values['theirs']):.3f}"
                print(f"{name}: {times} = {values['ratio']:.3f} [{low:.3f}, {high:.3f}]")
    else:
        found["stages"] = stages(bench, args)
        print(*table(found["stages"]), sep="\n")
        seconds = sum(row["seconds"] for row in found["stages"])
        print(f"{args.batch / seconds:.3f} images per second")
        if args.plot:
            plot(found["stages"], args.plot)
    del bench
    found["peak memory"] = peaks(args)
    for name, size in found["peak memory"].items():
        print(f"peak memory above the weights, {name}: {size / 1e6:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, default=str))
