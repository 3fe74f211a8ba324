"""Edits of the emoji pictures that can be made by rules: an instruction, a source and a target.

A cell is one picture in one state: mirrored or not, and one of ``STATES``. An edit goes from one
cell to another, so one table of encoded cells (``Pool``) has all sources and targets.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diversevar_core.vae.bsq import BSQ

from .data import PIXELS, SETS, Data, article, to_model

# Oklab hue in degrees and typical lightness of each colour
COLOURS = {
    "red": (29.0, 0.60),
    "yellow": (105.0, 0.88),
    "green": (142.0, 0.68),
    "blue": (262.0, 0.58),
    "purple": (308.0, 0.55),
    "pink": (352.0, 0.76),
}
STATES = ("plain", *COLOURS, "grey", "small", "upside down")
SMALL = 88  # side in pixels of a small picture
VISIBLE = 5.0  # least mean difference of source and target, of 255

# Kind of edit -> share in training, and its phrases. Those with a share of 0 move things in the
# picture; they are not trained, as after 200 steps the model had learned colours but not these.
KINDS = {
    "colour": (0.28, ("make it {}", "paint it {}")),
    "grey": (0.07, ("remove the colour", "remove the color", "make it grey", "make it gray")),
    "mirror": (0.0, ("mirror it", "turn it around", "turn it left")),
    "smaller": (0.0, ("make it smaller", "shrink it")),
    "larger": (0.0, ("make it larger", "make it bigger")),
    "upside down": (0.0, ("turn it upside down",)),
    "style": (
        0.25,
        ("in another style", "the {} in another style", "draw the {} in another style"),
    ),
    "replace": (
        0.40,
        ("replace the {0} by {1}", "replace the {0} with {1}", "replace it by {1}", "make it {1}"),
    ),
}
PLAIN = 0.75  # share of edits that start from a plain picture
HELD_OUT, SEED = 0.1, 11


class Cell(NamedTuple):
    """A picture's number, whether it is mirrored, and its state's number."""

    picture: int
    mirrored: bool
    state: int


class Edit(NamedTuple):
    """An instruction, the source, and a target (one of the possible results)."""

    kind: str
    instruction: str
    source: Cell
    target: Cell


def to_oklab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in 0..1 -> Oklab (Ottosson 2020)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return (linear @ torch.tensor(TO_CONES).T).clamp(min=0) ** (1 / 3) @ torch.tensor(TO_LAB).T


def from_oklab(lab: Tensor) -> Tensor:
    """Oklab (..., 3) -> sRGB in 0..1, clipped."""
    cones = (lab @ torch.linalg.inv(torch.tensor(TO_LAB)).T) ** 3
    linear = (cones @ torch.linalg.inv(torch.tensor(TO_CONES)).T).clamp(0, 1)
    curved = 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curved)


TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def coloured(pictures: Tensor, name: str) -> Tensor:
    """Pictures (N, H, W, 3) 0..255 with every hue set to the colour's; shading is kept.

    All coloured pixels move towards the colour's lightness, and their chroma grows by half.
    """
    hue, lightness = COLOURS[name]
    lab = to_oklab(pictures.float() / 255)
    chroma = lab[..., 1:].norm(dim=-1)
    weight = (chroma / 0.08).clamp(max=1)
    weight = weight * (chroma > 0.02)
    mean = (weight * lab[..., 0]).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-3)
    moved = lab[..., 0] + 0.7 * weight * (lightness - mean)[:, None, None]
    vivid = (1.5 * chroma).clamp(max=0.22)
    angle = math.radians(hue)
    return 255 * from_oklab(
        torch.stack((moved, vivid * math.cos(angle), vivid * math.sin(angle)), dim=-1)
    )


def shrunk(pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, 3) scaled to ``SMALL`` about their centre, white around them."""
    maps = pictures.permute(0, 3, 1, 2).float()
    small = F.interpolate(maps, (SMALL, SMALL), mode="bicubic", antialias=True)
    around = (PIXELS - SMALL) // 2
    return F.pad(small, (around,) * 4, value=255.0).permute(0, 2, 3, 1)


def in_state(pictures: Tensor, state: str) -> Tensor:
    """Plain pictures (N, H, W, 3) uint8 on white -> the same in a state."""
    if state == "plain":
        return pictures
    if state == "upside down":
        return pictures.flip(1)
    if state == "small":
        changed = shrunk(pictures)
    elif state == "grey":
        grey = pictures.float() @ torch.tensor((0.299, 0.587, 0.114))
        changed = grey[..., None].expand(-1, -1, -1, 3)
    else:
        changed = coloured(pictures, state)
    return changed.round().clamp(0, 255).byte()


class Pool(NamedTuple):
    """The data and every cell's encoder features (cells, d, h, w) float16.

    changed: mean difference (N, states) from the plain picture; asymmetry: (N,) from the mirrored.
    """

    data: Data
    features: Tensor
    changed: Tensor
    asymmetry: Tensor

    def row(self, cell: Cell) -> int:
        """The cell's index in ``features``."""
        return (cell.picture * 2 + cell.mirrored) * len(STATES) + cell.state

    def pictures(self, cells: list[Cell]) -> Tensor:
        """The cells' pictures, (n, H, W, 3) uint8."""
        made = []
        for picture, mirrored, state in cells:
            own = in_state(self.data.pictures[[picture]], STATES[state])
            made.append(own.flip(2) if mirrored else own)
        return torch.cat(made)


@torch.no_grad()
def load_pool(data: Data, tokenizer: BSQ, path: Path) -> Pool:
    """The pool at ``path``; computed first if it does not exist (minutes)."""
    if path.exists():
        return Pool(data, *torch.load(path, weights_only=True))
    features, changed = [], []
    for state in STATES:
        pictures = in_state(data.pictures, state)
        changed.append((pictures.float() - data.pictures.float()).abs().mean((1, 2, 3)))
        sides = [
            torch.cat([tokenizer.features(to_model(p)).half() for p in side.split(64)])
            for side in (pictures, pictures.flip(2))
        ]
        features.append(torch.stack(sides, dim=1))
    table = torch.stack(features, dim=2).flatten(0, 2)
    asymmetry = data.pictures.float() - data.pictures.flip(2).float()
    pool = table, torch.stack(changed, dim=1), asymmetry.abs().mean((1, 2, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(pool, path)
    return Pool(data, *pool)


class Maker:
    """Draw edits for training, or edits that are held out from it.

    A tenth of each is held out: (picture, state) pairs, as source and as target; pictures, from
    mirroring; pictures, from another style; (picture, new concept) pairs, from replacing.
    """

    def __init__(self, pool: Pool):
        self.pool, data = pool, pool.data
        generator = torch.Generator().manual_seed(SEED)
        n = len(data.pictures)

        def held(*size: int) -> list:
            return (torch.rand(*size, generator=generator) < HELD_OUT).tolist()

        self.held_state, self.held_mirror = held(n, len(STATES)), held(n)
        self.held_style, self.held_new = held(n), held(n, len(data.concepts))
        self.concept, self.design = data.concept.tolist(), data.design.tolist()
        self.place = {pair: i for i, pair in enumerate(zip(self.concept, self.design, strict=True))}
        self.may_mirror = [data.concepts[c].mirrored for c in self.concept]
        self.changed, self.asymmetry = pool.changed.tolist(), pool.asymmetry.tolist()

    def unseen(self, cell: Cell) -> bool:
        """Whether the cell is held out from training."""
        held_state = cell.state > 0 and self.held_state[cell.picture][cell.state]
        return held_state or (cell.mirrored and self.held_mirror[cell.picture])

    def there(self, cell: Cell) -> bool:
        """Whether the cell is valid: its state is visible, and no text is mirrored."""
        visible = cell.state == 0 or self.changed[cell.picture][cell.state] > VISIBLE
        return visible and (not cell.mirrored or self.may_mirror[cell.picture])

    def draw(self, kind: str, rng: random.Random, held_out: bool = False) -> Edit:
        """A random edit; held out ones start from plain (or small) pictures, not mirrored."""
        while True:
            picture = rng.randrange(len(self.concept))
            mirrored = not held_out and rng.random() < 0.5
            state = STATES.index("small") if kind == "larger" else 0
            if not held_out and rng.random() > PLAIN:
                state = rng.randrange(len(STATES))
            source = Cell(picture, mirrored, state)
            target, words, held = self.result(kind, source, rng)
            if target is None or not self.there(source) or not self.there(target):
                continue
            if held_out == (held or self.unseen(source) or self.unseen(target)):
                phrase = rng.choice(KINDS[kind][1])
                return Edit(kind, phrase.format(*words), source, target)

    def result(
        self, kind: str, source: Cell, rng: random.Random
    ) -> tuple[Cell | None, tuple[str, ...], bool]:
        """Target (None where the rule does not apply), the phrase's words, if it is held out."""
        picture, mirrored, state = source
        before = STATES[state]
        target, words, held = None, (), False
        if kind == "colour":
            colour = rng.choice(tuple(COLOURS))
            if colour != before and (before == "plain" or before in COLOURS):
                target, words = source._replace(state=STATES.index(colour)), (colour,)
        elif kind == "grey":
            if before == "plain" or before in COLOURS:
                target = source._replace(state=STATES.index("grey"))
        elif kind == "mirror":
            if self.asymmetry[picture] > 2 * VISIBLE:
                target = source._replace(mirrored=not mirrored)
                held = self.held_mirror[picture]
        elif kind == "smaller":
            if before == "plain":
                target = source._replace(state=STATES.index("small"))
        elif kind == "larger":
            if before == "small":
                target = source._replace(state=0)
        elif kind == "upside down":
            to = {"plain": "upside down", "upside down": "plain"}
            target = to.get(before) and source._replace(state=STATES.index(to[before]))
        elif kind == "style":
            design = rng.randrange(len(SETS))
            if design != self.design[picture]:
                target = source._replace(picture=self.place[self.concept[picture], design])
                words = (self.pool.data.concepts[self.concept[picture]].prompt,)
                held = self.held_style[picture]
        elif kind == "replace":
            old, new = self.concept[picture], rng.randrange(len(self.pool.data.concepts))
            if old != new:
                target = source._replace(picture=self.place[new, self.design[picture]])
                names = [self.pool.data.concepts[c].prompt for c in (old, new)]
                words, held = (names[0], article(names[1])), self.held_new[picture][new]
        return target, words, held


def trained() -> dict[str, float]:
    """The kinds of edits that are trained, and their shares."""
    return {kind: share for kind, (share, _) in KINDS.items() if share}


def offered() -> list[str]:
    """The instructions of the kinds that a model is worth using for: colours, and none."""
    colours = [said.format(colour) for said in KINDS["colour"][1] for colour in COLOURS]
    return [*colours, *KINDS["grey"][1]]


def all_instructions(data: Data) -> list[str]:
    """Phrases with every word that an instruction can have, for the vocabulary."""
    phrases = [phrase for _, own in KINDS.values() for phrase in own]
    words = [*COLOURS, *(concept.prompt for concept in data.concepts)]
    return [*(phrase.format("a", "an") for phrase in phrases), *words]
