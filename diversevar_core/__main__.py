"""The command line: ``python -m diversevar_core sample --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .cli import calibrate, compare, convert, encode, explore, sample
from .errors import UserError


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="diversevar_core", description=__doc__)
    commands = top.add_subparsers(required=True)
    for command in (sample, compare, explore, calibrate, encode, convert):
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; wrong input ends it with one sentence that says what is wrong."""
    args = parser().parse_args(argv)
    if sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that cannot be encoded
    try:
        args.run(args)
    except (UserError, OSError) as error:  # OSError: such as a full disk
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
