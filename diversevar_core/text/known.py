"""Which words of a prompt a small model does not know, which lists the prompts that it knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

ARTICLES = ("a", "an", "the")
NEAR = 3  # similar prompts that the sentence names


def words_of(text: str) -> list[str]:
    """A prompt's words in lower case, without articles and punctuation."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in ARTICLES]


def unseen(prompt: str, prompts: Sequence[str]) -> str | None:
    """One sentence on what a model that knows ``prompts`` does not know of a prompt.

    It names the new words, or says that the combination is new, and lists three similar prompts.
    None where the model knows the prompt.
    """
    words, trained = words_of(prompt), {one: words_of(one) for one in prompts}
    if words in trained.values():
        return None
    known = {word for one in trained.values() for word in one}
    new = [f"'{word}'" for word in words if word not in known]

    def likeness(one: str) -> tuple[int, float]:
        shared = len(set(words) & set(trained[one]))
        return shared, SequenceMatcher(None, " ".join(words), one).ratio()

    near = ", ".join(f"'{one}'" for one in sorted(prompts, key=likeness, reverse=True)[:NEAR])
    what = f"the words {', '.join(new)}" if len(new) > 1 else f"the word {new[0]}" if new else ""
    return f"This model does not know {what or 'these words together'}; it knows {near}."
