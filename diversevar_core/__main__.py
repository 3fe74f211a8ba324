"""The command line: ``python -m diversevar_core sample --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .cli import calibrate, compare, convert, encode, sample


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="diversevar_core", description=__doc__)
    commands = top.add_subparsers(required=True)
    for command in (sample, compare, calibrate, encode, convert):
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what is wrong with the input is said in one sentence."""
    args = parser().parse_args(argv)
    if sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for a path that it cannot show
    try:
        args.run(args)
    except (ValueError, OSError) as error:  # OSError: a full disk, at the end
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
