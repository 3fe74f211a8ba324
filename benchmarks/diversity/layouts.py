"""The bench of layouts: prompts that name the objects in an image, but not where they are.

A prompt has two to four objects and a background (``training/layouts_data.py``). The judge finds
each object and its position in an image (``training/layouts_judge.py``); diversity is how far an
object moves from seed to seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .features import Encode, Encoder, digest, read_tensors
from .protocols import Judge, Pictures, Prompt, Protocol

PROMPTS, EACH = 64, 8
FIRST = 1 << 25  # the first of the seeds of its layouts, which training does not draw
MOST = 4  # objects of a prompt


def protocol(folder: Path | None) -> Protocol:
    """folder: of ``python -m training.layouts_data``, for references and judge."""
    from training.layouts_data import draw_layout, draw_like, load, paint

    asked = [draw_layout(random.Random(FIRST + i)) for i in range(PROMPTS)]
    prompts = tuple(Prompt(layout.prompt, f"{i:03d}") for i, layout in enumerate(asked))
    if folder is None:
        return Protocol("layouts", prompts, EACH)
    objects = load(folder)

    def read(i: int) -> Image.Image:
        return Image.fromarray(
            paint(draw_like(asked[i // EACH], random.Random(FIRST + i)), objects)
        )

    texts = tuple(prompt.text for prompt in prompts for _ in range(EACH))
    references = Pictures(texts, read, digest(folder / "objects.npz"))
    return Protocol("layouts", prompts, EACH, references, Judge(judge, within_prompts))


def judge(path: Path) -> Encoder:
    """The trained judge at ``path``."""

    def load() -> Encode:
        from training.layouts_data import GROUNDS, read_prompt
        from training.layouts_judge import SURE, LayoutJudge, ground_of

        network = LayoutJudge()
        network.load_state_dict(read_tensors(path))
        network.eval()

        def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            pixels = torch.from_numpy(
                np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            )
            found, seen = network.find(pixels), ground_of(pixels)
            sure, grounds = found.there > SURE, list(GROUNDS)
            places, shares, others, right = [], [], [], []
            for i, prompt in enumerate(prompts):
                concepts, ground = read_prompt(prompt)
                asked = torch.tensor(concepts)
                here = sure[i, asked]
                at = torch.where(here[:, None], found.place[i, asked], torch.nan)
                places.append(F.pad(at, (0, 0, 0, MOST - len(concepts)), value=torch.nan))
                shares.append(here.float().mean())
                others.append((sure[i].sum() - here.sum()).float())
                right.append(float(grounds[seen[i]] == ground))
            return {
                "judge": found.features,
                "places": torch.stack(places).flatten(1),
                "objects found": torch.stack(shares),
                "objects not asked for": torch.stack(others),
                "right ground": torch.tensor(right),
            }

        return encode

    return Encoder("judge", digest(path), load)


def within_prompts(found: Mapping[str, Tensor], each: int) -> dict[str, Tensor]:
    """How far apart, in widths of a picture, an object is in two pictures of its prompt."""
    groups = found["places"].unflatten(1, (MOST, 2)).split(each)
    return {"moved": torch.tensor([moved(group) for group in groups], dtype=torch.float64)}


def moved(places: Tensor) -> float:
    """Mean distance of an object's places (pictures, objects, 2), NaN where it is not found."""
    apart = (places[:, None] - places[None]).norm(dim=-1)
    above = torch.triu(torch.ones(apart.shape[:2], dtype=torch.bool), diagonal=1)
    return apart[above].nanmean().nan_to_num().item()
