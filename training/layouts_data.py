"""Layouts: emoji on a coloured background, and their prompts: ``python -m training.layouts_data``.

The command draws the objects once, with transparency. A layout is two to four of them at random
places, in random sizes and designs, mirrored or not; so the objects in a picture and their places
are known.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import SETS, article, read_sets, render, resolve

PIXELS = 128
DRAWN = 96  # side in pixels of the saved objects
CONCEPTS = (
    "butterfly", "cactus", "cat face", "crab", "frog", "mushroom", "octopus", "panda", "penguin",
    "pizza", "red apple", "sunflower",
)  # fmt: skip
GROUNDS = {
    "blue": (140, 190, 240),
    "green": (150, 210, 150),
    "grey": (190, 190, 190),
    "orange": (250, 190, 130),
    "pink": (250, 180, 205),
    "purple": (190, 165, 230),
    "white": (255, 255, 255),
    "yellow": (250, 225, 130),
}
SIDES = {2: (52, 76), 3: (46, 62), 4: (40, 54)}  # number of objects -> their sides in pixels
COVERED = 0.15  # largest share of an object's box that another's may cover


class Placed(NamedTuple):
    """One object: its concept and design, its box's left, top and side in pixels."""

    concept: int
    design: int
    mirrored: bool
    left: int
    top: int
    side: int


class Layout(NamedTuple):
    """A background, one of ``GROUNDS``, and the objects on it, from back to front."""

    ground: str
    objects: tuple[Placed, ...]

    @property
    def prompt(self) -> str:
        """For example "a cat face, a rose and an owl on blue"."""
        *first, last = (article(CONCEPTS[placed.concept]) for placed in self.objects)
        return f"{', '.join(first)} and {last} on {self.ground}"


def read_prompt(prompt: str) -> tuple[tuple[int, ...], str]:
    """The concepts that a layout's prompt names, in its order, and the background."""
    named, ground = prompt.split(" on ")
    names = [part.split(" ", 1)[1] for part in named.replace(" and ", ", ").split(", ")]
    return tuple(CONCEPTS.index(name) for name in names), ground


def all_words() -> list[str]:
    """Every word that a prompt can have."""
    return ["a", "an", "and", "on", *GROUNDS, *CONCEPTS]


def covered(a: Placed, b: Placed) -> float:
    """The share of the smaller box that lies in both."""
    width = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    height = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    return max(width, 0) * max(height, 0) / min(a.side, b.side) ** 2


def arranged(concepts: Sequence[int], rng: random.Random) -> tuple[Placed, ...]:
    """These concepts at random places; none covers more of another than ``COVERED``."""
    while True:
        placed = []
        for concept in concepts:
            side = rng.randint(*SIDES[len(concepts)])
            left, top = (rng.randint(0, PIXELS - side) for _ in range(2))
            design, mirrored = rng.randrange(len(SETS)), rng.random() < 0.5
            placed.append(Placed(concept, design, mirrored, left, top, side))
        pairs = ((a, b) for i, a in enumerate(placed) for b in placed[:i])
        if all(covered(a, b) <= COVERED for a, b in pairs):
            return tuple(placed)


def draw_layout(rng: random.Random) -> Layout:
    """A random layout of two to four different concepts."""
    concepts = rng.sample(range(len(CONCEPTS)), rng.choice(tuple(SIDES)))
    return Layout(rng.choice(tuple(GROUNDS)), arranged(concepts, rng))


def draw_like(layout: Layout, rng: random.Random) -> Layout:
    """Another layout of the same prompt."""
    return layout._replace(objects=arranged([one.concept for one in layout.objects], rng))


def paint(layout: Layout, objects: np.ndarray) -> np.ndarray:
    """Draw a layout: (128, 128, 3) uint8; objects: from ``load``."""
    picture = Image.new("RGB", (PIXELS, PIXELS), GROUNDS[layout.ground])
    for concept, design, mirrored, left, top, side in layout.objects:
        drawn = objects[concept, design]
        drawn = Image.fromarray(drawn[:, ::-1] if mirrored else drawn)
        drawn = drawn.resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(drawn, (left, top), drawn)
    return np.asarray(picture)


def painted(seeds: range, objects: np.ndarray) -> tuple[list[Layout], Tensor]:
    """The layouts of these seeds and their pictures (N, 128, 128, 3) uint8."""
    layouts = [draw_layout(random.Random(seed)) for seed in seeds]
    return layouts, torch.tensor(np.stack([paint(layout, objects) for layout in layouts]))


def load(folder: Path) -> np.ndarray:
    """Read the objects (concepts, designs, 96, 96, 4) uint8 that ``main`` drew."""
    return np.load(folder / "objects.npz")["objects"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.layouts_data", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("layout-data"), help="where to save")
    parser.add_argument("--data", type=Path, default=Path("emoji-data"), help="has npm's packages")
    args = parser.parse_args()

    sets, _ = read_sets(args.data / "npm")
    objects = []
    for concept in CONCEPTS:
        found = [resolve(icons, concept.replace(" ", "-")) for icons in sets]
        objects += [
            render(s, *i, side=DRAWN, ground=None) for s, i in zip(sets, found, strict=True)
        ]
    args.folder.mkdir(parents=True, exist_ok=True)
    shape = (len(CONCEPTS), len(SETS), DRAWN, DRAWN, 4)
    np.savez_compressed(args.folder / "objects.npz", objects=np.stack(objects).reshape(shape))
    print(f"{len(objects)} objects in {args.folder}")


if __name__ == "__main__":
    main()
