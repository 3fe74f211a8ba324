"""Emoji pictures in six designs, joined by name: ``python -m training.data``.

The sets come from the npm registry as SVG (``SETS``; licences in NOTICE). They are rendered on
white and saved as one npz of uint8 pictures and a json of concepts.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SETS = ("fluent-emoji-flat", "fluent-emoji", "noto", "noto-v1", "twemoji", "emojione")
PIXELS = 128

# The categories of each set of concepts. "first" (small enough to train on two cores in an hour)
# has concepts with all six designs; the others those with at least four. "wide" also has those of
# added.txt, people, faces and objects among them. None has people in five skin tones, flags,
# letters or buttons.
GROWN = ("Activities", "Animals & Nature", "Food & Drink", "Travel & Places")
CATEGORIES = {
    "first": ("Animals & Nature", "Food & Drink"),
    "grown": GROWN,
    "wide": GROWN,
    "full": (*GROWN, "Objects", "People & Body", "Smileys & Emotion", "Symbols"),
}
ADDED = Path(__file__).with_name("added.txt").read_text().splitlines()
LEFT_OUT = re.compile(r"skin-tone|flag|button|keycap|input-|letter|oclock|thirty|japanese-.*-")

# Pictures with text in them, or with a direction in their name, have no mirrored copies.
WRITING = re.compile(
    r"left|right|place-medal|8-ball|taxi|police|ambulance|bus|joker|slot|milk|ticket|stop|sign"
    r"|book|calendar|yen|dollar|pound|euro|card|clock|100|watch|atm|map-|chart|newspaper|zzz"
)


@dataclass(frozen=True)
class Concept:
    """One prompt, whether it may be mirrored, the number of its designs, its category."""

    prompt: str
    mirrored: bool
    designs: int
    category: str = ""


class Data(NamedTuple):
    """pictures (N, 128, 128, 3) uint8; concept and design, (N,) indices of each picture."""

    pictures: Tensor
    concept: Tensor
    design: Tensor
    concepts: tuple[Concept, ...]


def load(folder: Path) -> Data:
    """Read the data that ``main`` wrote."""
    arrays = np.load(folder / "emoji.npz")
    concepts = json.loads((folder / "concepts.json").read_text())
    return Data(
        *(torch.from_numpy(arrays[name]) for name in ("pictures", "concept", "design")),
        tuple(Concept(**fields) for fields in concepts),
    )


def to_model(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, H, W, 3) -> (B, 3, H, W) float32 in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def halved(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, H, W, 3) -> (B, H / 2, W / 2, 3), each pixel the mean of four."""
    means = pictures.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).float().mean((2, 4))
    return means.round().byte()


def with_mirrored(data: Data) -> Data:
    """The data with a mirrored copy of every picture that may have one."""
    may = torch.tensor([concept.mirrored for concept in data.concepts])[data.concept]
    return Data(
        torch.cat((data.pictures, data.pictures[may].flip(2))),
        torch.cat((data.concept, data.concept[may])),
        torch.cat((data.design, data.design[may])),
        data.concepts,
    )


def resolve(icons: dict, name: str) -> tuple[str, bool] | None:
    """The icon of a name or alias in an Iconify set, and whether it is mirrored."""
    mirrored = False
    while name not in icons["icons"]:
        alias = icons.get("aliases", {}).get(name)
        if alias is None or "rotate" in alias or "vFlip" in alias:
            return None
        mirrored ^= alias.get("hFlip", False)
        name = alias["parent"]
    return name, mirrored


def render(
    icons: dict, name: str, mirrored: bool, side: int = PIXELS, ground: str | None = "white"
) -> np.ndarray:
    """Draw an icon on a background: (side, side, 3) uint8; without one, (side, side, 4)."""
    import resvg_py  # not needed to read existing data

    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = max(width, height)
    left = icon.get("left", icons.get("left", 0)) - (box - width) / 2
    top = icon.get("top", icons.get("top", 0)) - (box - height) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {box} {box}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background=ground)
    picture = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB" if ground else "RGBA"))
    return picture[:, ::-1] if mirrored else picture


def select(sets: Sequence[dict], categories: dict[str, str], chosen: str) -> list[str]:
    """Names of the concepts, in alphabetical order.

    sets: the Iconify sets; categories: name -> category; chosen: a key of ``CATEGORIES``. Of two
    names for the same icon, one in the "first" concepts is kept, else the one that more sets use.
    """
    drawn = {}  # name -> (set, icon) of each design
    for name in sorted({name for icons in sets for name in (*icons["icons"], *icons["aliases"])}):
        found = [(i, resolve(icons, name)) for i, icons in enumerate(sets)]
        drawn[name] = [(i, icon[0]) for i, icon in found if icon]

    def belongs(name: str, group: str) -> bool:
        designs = len(SETS) if group == "first" else 4
        added = group == "wide" and name.replace("-", " ") in ADDED
        return len(drawn[name]) >= designs and (added or categories[name] in CATEGORIES[group])

    named = [name for name in drawn if name in categories and not LEFT_OUT.search(name)]
    first = {name for name in named if belongs(name, "first")}
    own = {name: sum(icon == name for _, icon in drawn[name]) for name in drawn}
    names, taken = [], set()
    for name in sorted(named, key=lambda name: (name not in first, -own[name])):
        if (name in first or belongs(name, chosen)) and not taken & set(drawn[name]):
            taken |= set(drawn[name])
            names.append(name)
    return sorted(names)


def install(folder: Path, *packages: str) -> Path:
    """Install npm packages into ``folder``; return the folder that they are in."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-save"]
    subprocess.run(["npm", "install", *flags, "--prefix", str(folder), *packages], check=True)
    return folder / "node_modules"


def read_sets(folder: Path) -> tuple[list[dict], dict[str, str]]:
    """Install the npm packages into ``folder``; return the sets, and the category of each name."""
    root = install(folder, *(f"@iconify-json/{name}" for name in SETS)) / "@iconify-json"
    sets = [{"aliases": {}} | json.loads((root / s / "icons.json").read_text()) for s in SETS]
    categories = {}
    for name in ("twemoji", "noto"):  # the later one takes precedence
        metadata = json.loads((root / name / "metadata.json").read_text())
        for category, names in metadata["categories"].items():
            categories |= dict.fromkeys(names, category)
    return sets, categories


def article(name: str) -> str:
    """A concept's name with its article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def contact_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures (N, H, W, 3) uint8 in rows, white between them; N a multiple of columns."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    n, h, w, _ = padded.shape
    grid = padded.reshape(n // columns, columns, h, w, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(n // columns * h, columns * w, 3))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.data", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("emoji-data"), help="where to save")
    parser.add_argument("--concepts", default="first", choices=CATEGORIES)
    args = parser.parse_args()

    sets, categories = read_sets(args.folder / "npm")
    pictures, concept, design, concepts = [], [], [], []
    for name in select(sets, categories, args.concepts):
        found = [(i, resolve(icons, name)) for i, icons in enumerate(sets)]
        for i, icon in found:
            if icon:
                pictures.append(render(sets[i], *icon))
                concept.append(len(concepts))
                design.append(i)
        designs = sum(icon is not None for _, icon in found)
        concepts.append(
            {
                "prompt": name.replace("-", " "),
                "mirrored": not WRITING.search(name),
                "designs": designs,
                "category": categories[name],
            }
        )
    missing = {*ADDED} - {concept["prompt"] for concept in concepts}
    assert args.concepts != "wide" or not missing, missing  # fewer than four designs
    np.savez_compressed(
        args.folder / "emoji.npz", pictures=np.stack(pictures), concept=concept, design=design
    )
    (args.folder / "concepts.json").write_text(json.dumps(concepts, indent=1))
    print(f"{len(concepts)} concepts, {len(pictures)} pictures in {args.folder}")


if __name__ == "__main__":
    main()
