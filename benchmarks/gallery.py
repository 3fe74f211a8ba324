"""Draw the README's picture and docs/gallery.md's: ``python -m benchmarks.gallery``.

Eight images of each of the three shortest prompts that the included model knows, as published, with
every preset and with every method; ``compare.png`` has three of the presets. ``front.png``, the
README's, has prompts that were chosen as they look good. The templates' results are the thumbnails
in ``workflows``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.images import captioned_rows, sheet, to_pil
from diversevar_core.job import PLAIN, Chain, draw
from diversevar_core.methods.adaptive import AdaptiveScaling
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.methods.starts import Starts
from diversevar_core.methods.text_noise import TextNoise
from diversevar_core.models.family import Family
from diversevar_core.presets import PRESETS, Preset
from diversevar_core.text.encoder import TextEncoder, load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from diversevar_core.vae.vae import VAE

ROOT = Path(__file__).parents[1]
PAGE, IMAGES, TEMPLATES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images", ROOT / "workflows"
SEEDS = 8
PUBLISHED = PRESETS["as published"]
BY_RULE = ("as published", "SSR + SAR (DiverseVAR)", "most different")  # presets of compare.png
CHOSEN = ("butterfly", "telephone", "octopus", "mushroom", "rooster", "birthday cake")
FRONT = ("as published", "most different")  # presets of front.png


@dataclass(frozen=True)
class Row:
    """What is drawn under a heading: a preset, with a chain of methods."""

    title: str
    preset: Preset = PUBLISHED
    chain: Chain = PLAIN


ROWS = (
    *(Row(f"Preset {name}", preset) for name, preset in PRESETS.items()),
    Row("Diverse Seeds", chain=Chain(starts=Starts())),
    Row("Batch Repulsion", chain=Chain((Repulsion(),))),
    Row("Adaptive Logit Scaling", chain=Chain((AdaptiveScaling(),))),
    Row("CADS Text Noise", chain=Chain((TextNoise(),))),
    Row("CADS Text Noise and Scale Travel", chain=Chain((TextNoise(),), travel=4)),
    Row(
        "Adaptive Logit Scaling and Energy Path Search",
        chain=Chain((AdaptiveScaling(), PathSearch())),
    ),
    Row("FastVAR", chain=Chain((FastVAR(),))),
    Row("ScaleKV", chain=Chain((ScaleKV(),))),
)


def shortest(prompts: Sequence[str]) -> list[str]:
    """The three shortest prompts, in alphabetical order where they are as long."""
    return sorted(prompts, key=lambda prompt: (len(prompt), prompt))[:3]


@torch.inference_mode()
def draw_row(
    row: Row, model: Family, tokenizer: VAE, text: TextEncoder, prompts: Sequence[str]
) -> list[Tensor]:
    """Images (SEEDS, 3, H, W) in 0..1 of every prompt."""
    settings, chain = row.preset.settings(model.defaults()), row.preset.chain(row.chain)
    images = []
    for prompt in prompts:
        condition = Text(text([prompt])).repeat(SEEDS)
        *_, last = draw(model, tokenizer, condition, model.schedule(), settings, 0, chain).steps
        images.append(to_image(tokenizer.decode(last.f_hat)))
    return images


def save_rows(path: Path, prompts: Sequence[str], images: dict[str, list[Tensor]]) -> None:
    """A picture with a row for each prompt and preset. images: a preset -> those of each prompt."""
    rows = [
        (f"{prompt}: {name}", drawn[i])
        for i, prompt in enumerate(prompts)
        for name, drawn in images.items()
    ]
    to_pil(captioned_rows(rows)).save(path)


def save_front(model: Family, tokenizer: VAE, text: TextEncoder) -> None:
    """Draw the README's picture."""
    rows = {name: Row(name, PRESETS[name]) for name in FRONT}
    images = {name: draw_row(row, model, tokenizer, text, CHOSEN) for name, row in rows.items()}
    save_rows(IMAGES / "front.png", CHOSEN, images)


def file_name(title: str) -> str:
    """A heading as a file's name."""
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return f"gallery-{name}.png"


def page(rows: Sequence[Row], prompts: Sequence[str], templates: Sequence[Path]) -> str:
    """The page's Markdown."""
    named = ", ".join(f"*{prompt}*" for prompt in prompts)
    lines = [
        "# Gallery",
        "",
        f"The included model, seeds 0 to {SEEDS - 1}; made by `python -m benchmarks.gallery`. The "
        f"prompts are the three shortest of those it knows: {named}. Figures are in the "
        "[model's card](emoji-model-card.md#figures). FastVAR is for images of many tokens; "
        "this model's, of 16 x 16, it spoils.",
        "",
    ]
    for row in rows:
        lines += [f"## {row.title}", "", f"![{row.title}](images/{file_name(row.title)})", ""]
    lines += ["## Templates", ""]
    for path in templates:
        lines += [f"**{path.stem}**", "", f"![{path.stem}](<../workflows/{path.name}>)", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__).parse_args()
    model, tokenizer = load_model(included.MODEL), load_vae(included.VAE)
    text, prompts = load_text_encoder(included.TEXT_ENCODER), shortest(included.prompts())
    by_rule = {row.title: draw_row(row, model, tokenizer, text, prompts) for row in ROWS}
    for title, images in by_rule.items():
        to_pil(sheet(torch.cat(images), SEEDS)).save(IMAGES / file_name(title))
    compared = {name: by_rule[f"Preset {name}"] for name in BY_RULE}
    save_rows(IMAGES / "compare.png", prompts, compared)
    save_front(model, tokenizer, text)
    PAGE.write_text(page(ROWS, prompts, sorted(TEMPLATES.glob("*.jpg"))))


if __name__ == "__main__":
    main()
