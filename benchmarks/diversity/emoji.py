"""The bench of the included model: words, six designs of each, and a judge that knows them.

The judge is a small classifier of concept and design (``training/judge.py``); every concept has six
designs, so that diversity has a truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.metrics import designs_and_modes

from .features import Encode, Encoder, digest
from .protocols import Judge, Pictures, Prompt, Protocol, only, text_of

# prompts of one word that the included model knows
WORDS = """
amphora ant avocado banana bat bear bird blossom blowfish bread bug burrito butterfly cactus
camel candy carrot cat cherries chestnut chicken chipmunk crab croissant cucumber custard dango
deer doughnut duck eagle egg eggplant elephant ewe fish fox frog goat gorilla grapes hamburger
hamster herb hibiscus honeybee horse koala lemon leopard lion lizard lollipop melon moose mushroom
octopus owl panda peach peanuts pear penguin pig pineapple pizza poodle popcorn potato rooster
rose seedling shamrock shark shortcake shrimp snake spider spoon strawberry sunflower taco
tangerine tomato tulip turkey turtle unicorn watermelon whale wolf zebra
"""


def protocol(folder: Path | None) -> Protocol:
    """References and judge where ``python -m training.data`` has been run."""
    prompts = tuple(Prompt(text, text) for text in WORDS.split())
    if folder is None:
        return Protocol("emoji", prompts, 12)
    concepts = json.loads(text_of(folder / "concepts.json"))
    arrays = np.load(folder / "emoji.npz")
    pictures, concept = arrays["pictures"], arrays["concept"]
    known = Pictures(
        tuple(concepts[c]["prompt"] for c in concept),
        lambda i: Image.fromarray(pictures[i]),
        digest(folder / "emoji.npz"),
    )
    return Protocol("emoji", prompts, 12, only(known, prompts), Judge(judge, within_prompts))


def judge(path: Path) -> Encoder:
    """The judge at ``path``, of ``python -m training.judge``."""

    def load() -> Encode:
        from training.judge import read_judge

        network, concepts = read_judge(path)

        def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            verdict = network.judge(torch.from_numpy(pixels))
            wanted = torch.tensor([concepts.index(prompt) for prompt in prompts])
            hit = verdict.concept.topk(5).indices == wanted[:, None]
            return {
                "judge": verdict.features,
                "design": verdict.design.argmax(dim=1)[:, None],
                "top-1": hit[:, 0].float(),
                "top-5": hit.any(dim=1).float(),
            }

        return encode

    return Encoder("judge", digest(path), load)


def within_prompts(found: Mapping[str, Tensor], each: int) -> dict[str, Tensor]:
    """Designs and modes of every prompt's pictures, from what the judge said of all."""
    groups = zip(found["top-1"].bool().split(each), found["design"][:, 0].split(each), strict=True)
    pairs = [designs_and_modes(hit, design) for hit, design in groups]
    designs, modes = torch.tensor(pairs, dtype=torch.float64).T
    return {"designs": designs, "modes": modes}
