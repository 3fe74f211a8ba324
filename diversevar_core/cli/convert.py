"""Write any checkpoint as one safetensors file.

A transformer, VAE or text encoder, which can then be loaded alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert import DTYPES, convert
from .output import place


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
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
