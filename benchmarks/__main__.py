"""Speed and memory: ``python -m benchmarks speed infinity-125m --against ../Infinity``."""

from __future__ import annotations

import argparse
from pathlib import Path

from diversevar_core.schedule import PIXELS

from . import growth, memory, spectral, speed
from .shapes import SHAPES


def parser() -> argparse.ArgumentParser:
    """All measurements and their options."""
    top = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    commands = top.add_subparsers(required=True)

    one = commands.add_parser("speed", help="every stage of an image; or against an original")
    one.set_defaults(run=speed.run)
    one.add_argument("shape", choices=tuple(SHAPES))
    one.add_argument("--model", help="transformer file, in place of random weights")
    one.add_argument("--vae", help="its tokenizer")
    one.add_argument("--against", type=Path, help="checkout of VAR, Infinity or VAREdit")
    one.add_argument("--batch", type=int, default=1)
    one.add_argument("--pixels", choices=tuple(PIXELS), help="default: the model's")
    one.add_argument("--device", default="cpu")
    one.add_argument("--dtype", choices=tuple(speed.DTYPES), default="float32")
    one.add_argument("--diversity", type=float, default=0.0, help="above 0: with SSR and SAR")
    one.add_argument("--fastvar", action="store_true", help="with FastVAR as published")
    one.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    one.add_argument("--scalekv", action="store_true", help="keep 10 %% of keys and values")
    one.add_argument("--guidance-end", type=int, default=0, help="side of the last guided map")
    one.add_argument("--tries", type=int, default=5)
    one.add_argument("--json", type=Path, help="write all numbers to this file")
    one.add_argument("--plot", help="draw the stages into this PNG")

    two = commands.add_parser("memory", help="Infinity's memory, computed and measured")
    two.set_defaults(run=lambda args: memory.main())

    more = commands.add_parser("growth", help="cost against pixels, batch and depth")
    more.set_defaults(run=growth.run)
    more.add_argument("--json", type=Path, help="write all numbers to this file")
    more.add_argument("--plot", help="draw them into this PNG")

    three = commands.add_parser("spectral", help="SSR against a singular value decomposition")
    three.set_defaults(run=lambda args: spectral.main(args.device))
    three.add_argument("--device", default="cpu")
    return top


if __name__ == "__main__":
    args = parser().parse_args()
    args.run(args)
