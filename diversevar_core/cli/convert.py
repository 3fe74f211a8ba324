"""``convert``: any checkpoint to one safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert import DTYPES, convert
from .output import place


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    command = commands.add_parser(
        "convert",
        help="any checkpoint -> one safetensors file",
        description="Write a transformer, VAE or text encoder as one safetensors file that "
        "can be loaded alone.",
    )
    command.set_defaults(run=run)
    command.add_argument("source", metavar="IN", help="file, or folder of shards")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    command.add_argument(
        "--dtype", choices=tuple(DTYPES), help="of the matrices (default: as stored)"
    )


def run(args: argparse.Namespace) -> None:
    """Write one safetensors file, print the path."""
    out = place(args.out, ".safetensors")
    convert(args.source, out, args.dtype and DTYPES[args.dtype])
    print(out)
