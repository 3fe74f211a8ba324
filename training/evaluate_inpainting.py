"""Measure inpainting on the included model: ``python -m training.evaluate_inpainting``.

The images of 24 prompts are encoded, and drawn anew within four masks for 24 other prompts. Outside
is measured how near the result is to what the image's own tokens show, at least one token from the
mask, and inside whether the classifier names the new prompt on the mask's crop. *touched*: every
token that a mask touches is drawn, and not those of which it covers the middle. Writes
inpainting.md and inpainting.jpg.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.images import captioned_rows, to_pil
from diversevar_core.methods import keep
from diversevar_core.presets import PRESETS
from diversevar_core.resize import area
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import Scale
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image

from .judge import read_judge

JUDGE = Path(__file__).parents[1] / "tests" / "judge.safetensors"
PROMPTS, SEEDS, SHOWN = 24, 4, 8
# name: the box (top, bottom, left, right), of 8, and whether the mask is outside it
MASKS = {
    "small": ((3, 5, 3, 5), False),
    "half": ((0, 8, 4, 8), False),
    "middle": ((1, 7, 1, 7), False),
    "frame": ((2, 6, 2, 6), True),
}


def touched(mask: Tensor, scale: Scale) -> Tensor:
    """The rule before: ``keep.drawn_where`` of every token that the mask touches."""
    return area(mask[:, None], scale.h, scale.w).flatten(1) > 0


RULES = {"touched": touched, "now": keep.drawn_where}


def masks(side: int) -> Iterator[tuple[str, Tensor, tuple[slice, slice]]]:
    """Names, masks (1, side, side), and the crop in which the classifier looks."""
    for name, (box, outside) in MASKS.items():
        top, bottom, left, right = (part * side // 8 for part in box)
        mask = torch.full((1, side, side), float(outside))
        mask[:, top:bottom, left:right] = float(not outside)
        whole = slice(None), slice(None)
        yield name, mask, whole if outside else (slice(top, bottom), slice(left, right))


def decibels(images: Tensor, wanted: Tensor, where: Tensor) -> float:
    """PSNR of images (B, 3, H, W) in 0..1 at the pixels (H, W) that are true."""
    return -10 * (images - wanted).square()[..., where].mean().log10().item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("inpainting"))
    args = parser.parse_args()
    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    encode, (judge, names) = load_text_encoder(included.TEXT_ENCODER), read_judge(JUDGE)
    schedule, official = model.schedule(), model.defaults()
    known = [prompt for prompt in included.prompts() if prompt in names]
    olds, news = (random.Random(seed).sample(known, PROMPTS) for seed in (2, 3))

    def draw(prompts, settings, seed, methods=()) -> Tensor:
        text = Text(encode(prompts) * (len(seed) // PROMPTS))
        *_, last = sample(model, vae, text, schedule, settings, seed, methods=methods)
        return to_image(vae.decode(last.f_hat))

    images = draw(olds, official, range(1, 1 + PROMPTS))
    maps, f_hat = vae.quantize_maps(vae.features(2 * images - 1), schedule), None
    for scale, tokens in zip(schedule, maps, strict=True):
        f_hat, _ = vae.accumulate(f_hat, tokens, scale)
    many = [tokens.repeat(SEEDS, *[1] * (tokens.ndim - 1)) for tokens in maps]
    wanted = to_image(vae.decode(f_hat)).repeat(SEEDS, 1, 1, 1)
    labels = torch.tensor([names.index(new) for new in news] * SEEDS)
    seeds, side = range(100, 100 + SEEDS * PROMPTS), images.shape[-1]

    def named(drawn: Tensor, crop: tuple[slice, slice]) -> str:
        cropped = F.interpolate(drawn[(..., *crop)], (side, side), mode="bilinear")
        best = judge(2 * cropped - 1).concept.topk(5).indices == labels[:, None]
        first, five = best[:, 0].float().mean(), best.any(dim=1).float().mean()
        return f"{first:.2f}, {five:.2f}"

    lines = ["| mask | tokens drawn | preset | outside in dB | named inside: first, of five |"]
    lines += ["|---|---|---|---|---|"]
    rows = [("the images", images[:SHOWN])]
    for preset in ("as published", "balanced"):
        settings = PRESETS[preset].settings(official)
        free = draw(news, settings, seeds)
        for name, mask, crop in masks(side):
            near = F.max_pool2d(mask[None], 2 * vae.stride + 1, 1, vae.stride)[0, 0] > 0
            outside = ~near if not near.all() else mask[0] == 0  # the middle's is one token wide
            lines.append(f"| {name} | all, freely | *{preset}* | | {named(free, crop)} |")
            for rule, where in RULES.items():
                with patch.object(keep, "drawn_where", where):
                    drawn = draw(news, settings, seeds, [keep.Keep(many, mask=mask)])
                far = decibels(drawn, wanted, outside)
                lines.append(f"| {name} | {rule} | *{preset}* | {far:.1f} | {named(drawn, crop)} |")
                print(lines[-1], flush=True)
                if preset == "balanced":
                    rows.append((f"{name}, {rule}", drawn[:SHOWN]))
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    to_pil(captioned_rows(rows)).save(args.out.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main()
