"""What a node shows after a run; web/js/shown.js draws it."""

from collections.abc import Sequence


def shown(notes: Sequence[str], *lines: str) -> dict[str, list[str]]:
    """A node's ui output: the lines of its box, and before them notes, which are in a toast too."""
    return {"text": ["\n".join([*notes, *lines])], "notes": list(notes)}


def short(seeds: Sequence[int], seed: int) -> str:
    """Seeds in the fewest characters: large ones as the numbers that are added to ``seed``."""
    added = ", ".join(str((other - seed) % 2**64) for other in seeds)
    return min(", ".join(map(str, seeds)), f"{seed} + {added}", key=len)
