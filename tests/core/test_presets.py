"""Presets do what their names and the model card say."""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.presets import PRESETS
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import square
from diversevar_core.text.encoder import load_text_encoder

CARD = Path(__file__).parents[2] / "docs" / "emoji-model-card.md"


def test_ssr_and_sar_have_the_strengths_of_the_card():
    """The largest singular value is multiplied by exp(-ssr) before a block, exp(sar) after it."""
    (preset,) = (preset for preset in PRESETS.values() if preset.ssr)
    (method,) = preset.chain().methods
    written = re.search(r"SSR \+ SAR.*?: ([\d.]+) and ([\d.]+), on every block", CARD.read_text())
    ssr, sar = map(float, written.groups())
    x, scale = torch.randn(1, 16, 64), square((1, 2, 4, 6))[2]
    largest = torch.linalg.matrix_norm(x.double(), ord=2)
    for changed, gain in ((method.suppress(x, scale), -ssr), (method.amplify(x, scale), sar)):
        ratio = torch.linalg.matrix_norm(changed.double(), ord=2) / largest
        torch.testing.assert_close(ratio.item(), math.exp(gain), rtol=1e-5, atol=0)


def test_balanced_draws_the_maps_before_side_4_without_guidance():
    model, vae = load_model(included.MODEL), load_vae(included.VAE)
    condition = Text(load_text_encoder(included.TEXT_ENCODER)(["octopus"] * 4))
    official = model.defaults()
    free = replace(official, cfg=(1.0,), tau=(1.0,))
    maps = {}
    for name in ("free", "balanced", "as published"):
        settings = free if name == "free" else PRESETS[name].settings(official)
        how = (model.schedule(), settings, range(4))
        maps[name] = [step.tokens for step in sample(model, vae, condition, *how, maps=3)]
    for name, same in (("balanced", [True, True, False]), ("as published", [False] * 3)):
        assert [torch.equal(a, b) for a, b in zip(maps["free"], maps[name], strict=True)] == same
