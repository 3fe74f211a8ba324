"""Several prompts in one text: one a line, and every combination of words in braces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from ..errors import UserError

MOST = 256  # prompts of one text: a few braces too many write out millions
CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")  # the innermost one


def prompts_of(text: str) -> list[str]:
    """The prompts of a text, in order and each once; an empty text is one empty prompt.

    Raises UserError if there are more than ``MOST``.
    """
    written = (prompt for line in text.splitlines() for prompt in written_out(line.strip()))
    prompts = list(islice(filter(None, written), MOST + 1))
    if len(prompts) > MOST:
        raise UserError(
            f"The text writes out more than {MOST} prompts; leave out some words in braces, or "
            "split it."
        )
    return list(dict.fromkeys(prompts)) or [""]


def written_out(line: str) -> Iterator[str]:
    """Every combination of the choices in a line: {red|green} apple -> red apple, green apple."""
    choices = CHOICE.search(line)
    if choices is None:
        yield " ".join(line.split())
        return
    for choice in choices[1].split("|"):
        yield from written_out(line[: choices.start()] + choice.strip() + line[choices.end() :])
