"""Draw the README's picture and docs/gallery.md's: ``python -m benchmarks.gallery``.

Eight images of each of the three shortest prompts that the included model knows, as published, with
every preset and with every method. The README shows three of the presets. The templates' results
are the thumbnails in ``workflows``.
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
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from diversevar_core.vae.vae import VAE

ROOT = Path(__file__).parents[1]
PAGE, IMAGES, TEMPLATES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images", ROOT / "workflows"
SEEDS = 8
PUBLISHED = PRESETS["as published"]
FRONT = ("as published", "SSR + SAR (DiverseVAR)", "most different")  # the README's presets


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
def draw_row(row: Row, model: Family, tokenizer: VAE, conditions: Sequence[Text]) -> list[Tensor]:
    """Images (SEEDS, 3, H, W) in 0..1 of every condition."""
    settings, chain = row.preset.settings(model.defaults()), row.preset.chain(row.chain)
    images = []
    for condition in conditions:
        *_, last = draw(model, tokenizer, condition, model.schedule(), settings, 0, chain).steps
        images.append(to_image(tokenizer.decode(last.f_hat)))
    return images


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
        "[model's card](emoji-model-card.md#figures). FastVAR and ScaleKV are for images of many "
        "tokens; this model's, of 8 x 8, they spoil.",
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
    conditions = [Text(text([prompt])).repeat(SEEDS) for prompt in prompts]
    front = {}
    for row in ROWS:
        images = draw_row(row, model, tokenizer, conditions)
        to_pil(sheet(torch.cat(images), SEEDS)).save(IMAGES / file_name(row.title))
        front[row.title] = images
        print(row.title, flush=True)
    lines = [
        (f"{prompt}: {name}", front[f"Preset {name}"][i])
        for i, prompt in enumerate(prompts)
        for name in FRONT
    ]
    to_pil(captioned_rows(lines)).save(IMAGES / "compare.png")
    PAGE.write_text(page(ROWS, prompts, sorted(TEMPLATES.glob("*.jpg"))))


if __name__ == "__main__":
    main()
