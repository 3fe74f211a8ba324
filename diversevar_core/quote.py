"""How errors repeat what a user or a file has said."""

from __future__ import annotations

MOST = 240  # characters that are repeated


def quote(value: object) -> str:
    """A text, name or path in quotes, on one line, its middle left out where it is long.

    What cannot be printed is escaped: line breaks, control characters, and the lone surrogates that
    stand for a file name's bytes and that no output can encode.
    """
    text = str(value)
    if len(text) > MOST:
        text = f"{text[: MOST // 2]}...{text[-MOST // 2 :]}"
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"
