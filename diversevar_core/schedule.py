"""The token maps of an image: scales, sides, aspect ratios, pixel budgets.

A schedule is a tuple of scales, coarse to fine. VAR's maps are squares of given sides
(arXiv 2404.02905); Infinity's follow the image's aspect ratio (arXiv 2412.04431, and
``infinity/utils/dynamic_resolution.py`` of FoundationVision/Infinity).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from .errors import UserError, quote


class Scale(NamedTuple):
    """One token map of a schedule."""

    k: int  # index in the schedule, from 0
    h: int  # height in tokens
    w: int  # width in tokens
    side: int  # of the square schedule's map with the same k: its name at every aspect ratio
    begin: int  # number of tokens of all maps before it
    next: tuple[int, int] | None  # (h, w) of the map after it, None at the last
    full: tuple[int, int]  # (h, w) of the last map
    progress: float  # 0 at the first map, 1 at the last

    @property
    def tokens(self) -> int:
        """Number of tokens of the map."""
        return self.h * self.w

    @property
    def last(self) -> bool:
        """Whether it is the last map."""
        return self.next is None


Schedule = tuple[Scale, ...]

PIXELS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # pixel budget -> number of maps

MOST_TOKENS = 2**16  # of all maps of an image together; the 1M schedule has a sixth of it

SQUARE_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)

# height / width -> the maps of the 1M schedule, for images at least as high as wide
PORTRAIT_MAPS = {
    1.0: tuple((side, side) for side in SQUARE_SIDES),
    1.25: (
        (1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24), (35, 28),
        (45, 36), (55, 44), (70, 56),
    ),
    1.333: (
        (1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21), (36, 27),
        (48, 36), (60, 45), (72, 54),
    ),
    1.5: (
        (1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22), (39, 26),
        (48, 32), (63, 42), (78, 52),
    ),
    1.75: (
        (1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20), (42, 24),
        (56, 32), (70, 40), (84, 48),
    ),
    2.0: (
        (1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19), (46, 23),
        (60, 30), (74, 37), (90, 45),
    ),
    2.5: (
        (1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16), (50, 20),
        (65, 26), (80, 32), (100, 40),
    ),
    3.0: (
        (1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15), (54, 18),
        (72, 24), (90, 30), (111, 37),
    ),
}  # fmt: skip

# every official height / width; landscapes are the transposes of the portraits
MAPS = PORTRAIT_MAPS | {
    int(1000 / ratio) / 1000: tuple((w, h) for h, w in maps)
    for ratio, maps in PORTRAIT_MAPS.items()
    if ratio > 1
}


def schedule_of(maps: Sequence[tuple[int, int]], sides: Sequence[int]) -> Schedule:
    """The schedule of token maps (h, w), coarse to fine; sides: see ``Scale.side``."""
    begins = (0, *accumulate(h * w for h, w in maps))
    after = (*maps[1:], None)
    return tuple(
        Scale(k, *maps[k], sides[k], begins[k], after[k], maps[-1], k / max(len(maps) - 1, 1))
        for k in range(len(maps))
    )


def square(sides: Sequence[int]) -> Schedule:
    """The schedule of square token maps with these sides, e.g. VAR's ``patch_nums``."""
    return schedule_of([(side, side) for side in sides], sides)


def checked_sides(sides: object, name: str) -> tuple[int, ...]:
    """Check the sides of a model's own square maps. Raises UserError, which names ``name``.

    The first must be 1, none may be smaller than the one before it, and all maps together may have
    at most ``MOST_TOKENS`` tokens (a typing error could otherwise fill the memory).
    """
    good = (
        isinstance(sides, Sequence)
        and all(type(side) is int for side in sides)
        and sides[:1] in ([1], (1,))
        and list(sides) == sorted(sides)
        and sum(side * side for side in sides) <= MOST_TOKENS
    )
    if not good:
        raise UserError(
            f"{name} must be whole numbers that start with 1 and do not decrease, such as "
            f"[1, 2, 3, 4], with squares of at most {MOST_TOKENS} together, not {quote(sides)}"
        )
    return tuple(sides)


def nearest_aspect(aspect: float) -> float:
    """The official height-to-width ratio nearest to ``aspect``."""
    return min(MAPS, key=lambda ratio: abs(ratio - aspect))


def infinity_schedule(aspect: float = 1.0, pixels: str = "1M") -> Schedule:
    """Infinity's schedule for the official ratio nearest to ``aspect`` (height / width).

    pixels: the budget, one of ``PIXELS``, which sets how many maps of the 1M schedule are used.
    """
    return schedule_of(MAPS[nearest_aspect(aspect)][: PIXELS[pixels]], SQUARE_SIDES)


def fixed(sides: Sequence[int], aspect: float, pixels: str | None) -> Schedule:
    """The schedule of a model that has only these square maps; UserError for other requests."""
    if aspect != 1.0 or pixels is not None:
        raise UserError(
            f"This model makes square images of one size (sides {', '.join(map(str, sides))}); "
            "leave the aspect ratio at 1:1 and the size at the official one."
        )
    return square(sides)
