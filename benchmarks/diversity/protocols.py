"""The benches: prompts, images per prompt, file names, and reference images.

Everything is read from the user's copy of a data set in its public layout. The order of prompts is
always the same, so that an image's number gives its prompt and seed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .features import Encoder

COCO_2014 = 30_000  # pictures drawn from the 40,504 of val2014
COCO_SEED = 2014


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures: their prompts, how to read one, and a text that identifies the set."""

    prompts: tuple[str, ...]
    read: Callable[[int], Image.Image]
    identity: str = ""


@dataclass(frozen=True)
class Prompt:
    """name: of its files; line: the authors' metadata of it."""

    text: str
    name: str
    line: str = ""


@dataclass(frozen=True)
class Judge:
    """How to measure a bench whose images have known contents.

    encoder: the trained judge's file -> an encoder, whose features are named "judge". within: the
    encoder's results and the number of pictures per prompt -> figures of every prompt, (prompts,).
    """

    encoder: Callable[[Path], Encoder]
    within: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Protocol:
    """each: pictures per prompt; references: real pictures of these prompts, if there are any."""

    name: str
    prompts: tuple[Prompt, ...]
    each: int
    references: Pictures | None = None
    judge: Judge | None = None

    def file(self, number: int) -> str:
        """Path of a picture; a prompt's pictures follow each other."""
        i, j = divmod(number, self.each)
        if self.name == "geneval":
            return f"samples/{i:05d}/samples/{j:04d}.png"
        return f"samples/{self.prompts[i].name}_{j}.png"

    def samples(self, folder: Path) -> Pictures:
        """All the pictures in a folder."""
        return Pictures(
            tuple(prompt.text for prompt in self.prompts for _ in range(self.each)),
            lambda number: Image.open(folder / self.file(number)),
        )

    def extra(self, i: int) -> str | None:
        """Path of another file that the authors' scorer needs for the i-th prompt, or None."""
        if self.name == "geneval":
            return f"samples/{i:05d}/metadata.jsonl"
        return f"grids/{self.prompts[i].name}.png" if self.name == "dpg" else None

    def extra_content(self, i: int, pictures: Sequence[Image.Image]) -> bytes:
        """Content of that file, from the prompt's pictures: DPG's 2 x 2 grid, GenEval's line."""
        if self.name == "geneval":
            return self.prompts[i].line.encode() + b"\n"
        width, height = pictures[0].size
        grid = Image.new("RGB", (2 * width, 2 * height))
        for j, picture in enumerate(pictures[:4]):
            grid.paste(picture, (j % 2 * width, j // 2 * height))
        return png(grid)

    def first(self, count: int) -> Protocol:
        """The first prompts and their references alone."""
        prompts = self.prompts[:count]
        return replace(self, prompts=prompts, references=only(self.references, prompts))


def only(pictures: Pictures | None, prompts: Sequence[Prompt]) -> Pictures | None:
    """The pictures of these prompts."""
    if pictures is None:
        return None
    texts = {prompt.text for prompt in prompts}
    kept = [i for i, text in enumerate(pictures.prompts) if text in texts]
    read = pictures.read
    return Pictures(
        tuple(pictures.prompts[i] for i in kept), lambda i: read(kept[i]), pictures.identity
    )


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def text_of(path: Path) -> str:
    """Read a data set's text file; ValueError where it is missing."""
    if not path.is_file():
        raise ValueError(
            f"There is no {path}; --data must be the data set's folder in its public layout "
            "(docs/evaluation.md)."
        )
    return path.read_text(encoding="utf-8")


def coco(name: str, year: str, count: int | None, folder: Path) -> Protocol:
    """A caption and its picture for every picture of a validation set, or for ``count`` of them.

    The captions are COCO's (arXiv 1504.00325); of five, the one with the lowest id is taken.
    """
    content = json.loads(text_of(folder / "annotations" / f"captions_val{year}.json"))
    captions = {}
    for caption in sorted(content["annotations"], key=lambda caption: caption["id"]):
        captions.setdefault(caption["image_id"], caption["caption"])
    pictures = sorted(content["images"], key=lambda picture: picture["id"])
    if count is not None:
        generator = torch.Generator().manual_seed(COCO_SEED)
        order = torch.randperm(len(pictures), generator=generator)[:count]
        pictures = [pictures[i] for i in order.sort().values.tolist()]
    # only names, so that no path leaves the folder
    paths = [folder / f"val{year}" / Path(picture["file_name"]).name for picture in pictures]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(
            f"{len(missing)} of {len(paths)} reference pictures are missing, first {missing[0]}."
        )
    texts = [" ".join(captions[picture["id"]].split()) for picture in pictures]
    prompts = tuple(Prompt(text, f"{i:05d}") for i, text in enumerate(texts))
    identity = hashlib.sha256(repr([(p.name, p.stat().st_size) for p in paths]).encode())
    references = Pictures(tuple(texts), lambda i: Image.open(paths[i]), identity.hexdigest())
    return Protocol(name, prompts, 1, references)


def geneval(folder: Path) -> Protocol:
    """GenEval (arXiv 2310.11513), from a copy of djghosh13/geneval: 4 pictures a prompt."""
    lines = text_of(folder / "prompts" / "evaluation_metadata.jsonl").splitlines()
    prompts = (Prompt(json.loads(line)["prompt"], f"{i:05d}", line) for i, line in enumerate(lines))
    return Protocol("geneval", tuple(prompts), 4)


def dpg(folder: Path) -> Protocol:
    """DPG-Bench (arXiv 2403.05135), from ``dpg_bench`` of TencentQQGYLab/ELLA: 4 a prompt."""
    files = sorted((folder / "prompts").glob("*.txt"))
    if not files:
        raise ValueError(f"There are no {folder / 'prompts' / '*.txt'}.")
    prompts = (Prompt(" ".join(text_of(file).split()), file.stem) for file in files)
    return Protocol("dpg", tuple(prompts), 4)


PUBLIC = {
    "coco2014-30k": partial(coco, "coco2014-30k", "2014", COCO_2014),
    "coco2017-5k": partial(coco, "coco2017-5k", "2017", None),
    "geneval": geneval,
    "dpg": dpg,
}
