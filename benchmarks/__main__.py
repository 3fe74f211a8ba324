"""What holds on this machine, and how fast: ``python -m benchmarks card``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diversevar_core.errors import UserError

from . import card
from .shapes import SHAPES


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    options = top.add_subparsers(required=True).add_parser("card", help=card.__doc__.split("\n")[0])
    options.add_argument("--device", help="cuda, cuda:1, xpu, mps or cpu; default: the fastest")
    options.add_argument("--minutes", type=float, default=10.0, help="to stop after; default: 10")
    options.add_argument("--host", type=Path, help="a ComfyUI, to run the nodes in")
    options.add_argument("--against", type=Path, help="a checkout of Infinity, VAR or VAREdit")
    options.add_argument("--only", choices=tuple(card.PARTS), help="this part, after the machine's")
    options.add_argument("--shape", choices=tuple(SHAPES), help="of the model to measure")
    options.add_argument("--out", type=Path, default=Path(), help="folder for the report")
    options.add_argument("--table", type=Path, nargs="*", help="only show these reports, .json")
    options.set_defaults(run=card.run)
    return top


if __name__ == "__main__":
    args = parser().parse_args()
    try:
        sys.exit(args.run(args) > 0)
    except UserError as error:
        sys.exit(str(error))
