"""The command line: ``python -m diversevar_core sample --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .cli import calibrate, compare, convert, encode, explore, sample
from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Its errors are sentences, as all others are."""

    def error(self, message: str) -> NoReturn:
        super().error(message.removesuffix(".") + ".")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(prog="diversevar_core", description=__doc__)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True)
    for module in (sample, compare, explore, calibrate, encode, convert):
        name, about = module.__name__.rpartition(".")[2], module.__doc__
        command = commands.add_parser(name, help=about.splitlines()[0], description=about)
        command.set_defaults(run=module.run, out=Path(f"{name}.png"))
        module.add_options(command)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; wrong input ends it with one sentence that says what is wrong."""
    args = parser().parse_args(argv)
    if sys.stdout and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that cannot be encoded
    try:
        args.run(args)
        if sys.stdout:  # None where a shell closed it
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the path; Python would complain of it at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:  # OSError: such as a full disk
        sys.exit(f"error: {str(error).removesuffix('.')}.")


if __name__ == "__main__":
    main()
