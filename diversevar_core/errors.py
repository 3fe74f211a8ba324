"""What a user did wrong, and how its sentence quotes texts, names and paths."""

from __future__ import annotations

import math
from collections.abc import Collection

MOST = 240  # characters of a quoted text


class UserError(ValueError):
    """What a user can mend; the message says what, where, and what to do. All else is a bug."""


class UnknownPromptError(UserError):
    """A prompt in which a small model knows nothing; in a list of prompts it is left out."""


def quote(value: object) -> str:
    """A text, name or path in quotes, on one line; a long one without its middle.

    Characters that cannot be printed are escaped: line breaks, control characters, and the lone
    surrogates that Python uses for file names that are not valid Unicode.
    """
    text = str(value)
    if len(text) > MOST:
        text = f"{text[: MOST // 2]}...{text[-MOST // 2 :]}"
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise UserError unless a value is a finite number from ``least`` to ``most``."""
    if not (least <= value <= most and math.isfinite(value)):
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of {least:g} or more"
        raise UserError(f"{name} must be a number {span}, not {value:g}.")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise UserError unless a value is one of the choices; of many, the first 20 are named."""
    if type(value) not in {type(choice) for choice in choices} or value not in choices:
        listed = ", ".join(quote(choice) for choice in list(choices)[:20])
        more = ", ..." if len(choices) > 20 else ""
        what = f"{name} is missing" if value is None else f"{quote(value)} is not a valid {name}"
        raise UserError(f"{what}; choose one of {listed}{more}.")
