"""What a user did wrong, and how its sentence quotes texts, names and paths."""

from __future__ import annotations

MOST = 240  # characters of a quoted text


class UserError(ValueError):
    """What a user can mend; the message says what, where, and what to do. All else is a bug."""


def quote(value: object) -> str:
    """A text, name or path in quotes, on one line; a long one without its middle.

    Characters that cannot be printed are escaped: line breaks, control characters, and the lone
    surrogates that Python uses for file names that are not valid Unicode.
    """
    text = str(value)
    if len(text) > MOST:
        text = f"{text[: MOST // 2]}...{text[-MOST // 2 :]}"
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"
