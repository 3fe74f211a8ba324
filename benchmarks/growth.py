"""How cost grows with pixels, batch and depth: measured on small models, and computed.

``python -m benchmarks growth`` samples guided images with random Infinity models on a CPU.
Computed are the FLOPs of all products at the rate of one large product, in CPU seconds, and the
bytes of ``memory.needs``.
"""

from __future__ import annotations

import json
import multiprocessing
from argparse import Namespace
from typing import NamedTuple

import torch

from diversevar_core.conditions import Text
from diversevar_core.models.infinity import Infinity
from diversevar_core.models.packed import pack
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import PIXELS, Schedule, infinity_schedule
from diversevar_core.settings import Settings
from diversevar_core.vae.autoencoder import AutoencoderConfig
from diversevar_core.vae.bsq import BSQ

from .memory import PROMPT, ROWS, config, needs
from .meter import peak, return_freed_memory, seconds

WIDTH, DEPTH, BITS = 128, 4, 32
SETTINGS = Settings((4.0,), "flat", (1.0,), top_k=0, top_p=0.0)


class Case(NamedTuple):
    """One run of a sweep."""

    pixels: str = "0.06M"
    batch: int = 1
    depth: int = DEPTH


SWEEPS = {
    "pixels": [Case(pixels) for pixels in PIXELS],
    "batch": [Case(batch=batch) for batch in (1, 2, 4, 8, 16)],
    "depth": [Case(depth=depth) for depth in (2, 4, 8, 16)],
}


def flops(schedule: Schedule, case: Case) -> int:
    """FLOPs of the blocks' products, for all rows of a guided batch.

    A token's linear layers multiply 14 width**2 weights: 4 in self-attention, 2 in attention to
    the text, 8 in the feed-forward layer. Attention is two products of its width.
    """
    tokens = sum(scale.tokens for scale in schedule)
    seen = sum(scale.tokens * (scale.begin + scale.tokens + PROMPT) for scale in schedule)
    return ROWS * case.batch * case.depth * (2 * 14 * WIDTH**2 * tokens + 4 * WIDTH * seen)


def product_rate() -> float:
    """FLOPs of a product of 1024 x 1024 matrices in a second of CPU time, the best of five."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / min(seconds(lambda: a @ a, "cpu")[1] for _ in range(5))


def measured(case: Case) -> tuple[float, int]:
    """CPU seconds of a batch, and the peak of the process's memory above the weights."""
    torch.manual_seed(0)
    model = Infinity(config(WIDTH, case.depth, WIDTH // 64, BITS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    pack(model)
    tokenizer = BSQ(AutoencoderConfig((32, 32), 1, BITS, attention=False))
    text = Text([torch.randn(PROMPT, model.config.text)] * case.batch)

    def run(pixels: str) -> None:
        schedule = infinity_schedule(1.0, pixels)
        for _ in sample(model, tokenizer, text, schedule, SETTINGS, range(case.batch)):
            pass

    run("0.06M")  # so that torch allocates its own buffers first
    before = peak("cpu", reset=True)
    _, busy = seconds(lambda: run(case.pixels), "cpu")
    return busy, peak("cpu") - before


def computed(case: Case, rate: float) -> tuple[float, float]:
    """The computed counterpart of ``measured``; rate: FLOP/s."""
    schedule = infinity_schedule(1.0, case.pixels)
    sizes = config(WIDTH, case.depth, WIDTH // 64, BITS)
    return flops(schedule, case) / rate, sum(needs(sizes, 4, schedule, case.batch).values())


def plot(found: dict[str, list[dict]], path: str) -> None:
    """Plot time above and memory below, measured and computed, one column per sweep."""
    from matplotlib import pyplot  # only where a plot is asked for

    size = {"figsize": (9, 5), "layout": "constrained"}
    figure, axes = pyplot.subplots(2, len(found), sharex="col", sharey="row", **size)
    for column, (name, rows) in enumerate(found.items()):
        x = [row["tokens"] if name == "pixels" else row[name] for row in rows]
        for line, (what, unit) in zip(axes, (("seconds", 1), ("bytes", 1e6)), strict=True):
            for kind, style in (("measured", "o-"), ("computed", "--")):
                values = [row[f"{kind} {what}"] / unit for row in rows]
                color = "#d9541e" if kind == "measured" else "#8a8f98"
                line[column].plot(x, values, style, label=kind, color=color)
            line[column].set(xscale="log", yscale="log")
            line[column].grid(alpha=0.3)
        ticks = [row["pixels"] for row in rows] if name == "pixels" else x
        axes[1][column].set_xticks(x, ticks)
        axes[1][column].minorticks_off()
        axes[1][column].set_xlabel(name)
    axes[0][0].set_ylabel("CPU seconds")
    axes[1][0].set_ylabel("MB above the weights")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)


def run(args: Namespace) -> None:
    """Measure every case in a process that returns freed memory; print, and plot if asked."""
    return_freed_memory()
    found: dict[str, list[dict]] = {}
    rate = product_rate()
    print("| pixels | batch | depth | CPU s | computed | MB | computed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        done = {}
        for name, cases in SWEEPS.items():
            found[name] = []
            for case in cases:
                if case not in done:
                    done[case] = fresh.apply(measured, (case,))
                tokens = sum(scale.tokens for scale in infinity_schedule(1.0, case.pixels))
                (busy, size), (by_rate, bytes_) = done[case], computed(case, rate)
                found[name].append({
                    **case._asdict(), "tokens": tokens,
                    "measured seconds": busy, "computed seconds": by_rate,
                    "measured bytes": size, "computed bytes": bytes_,
                })  # fmt: skip
                shown = f"{busy:.2f} | {by_rate:.2f} | {size / 1e6:.0f} | {bytes_ / 1e6:.0f}"
                print("|", *(f"{value} |" for value in case), shown, "|", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if args.plot:
        plot(found, args.plot)
