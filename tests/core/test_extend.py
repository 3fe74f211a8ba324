"""The worked examples of docs/extend.md do what the page says."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diversevar_core import models as families
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.sampler import sample

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> dict:
    """The names that the page's code defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    file = tmp_path_factory.mktemp("page") / "examples.py"
    file.write_text("\n\n".join(blocks))
    return runpy.run_path(str(file))


def test_a_method_of_twenty_lines(examples, infinity_case):
    model, vae = load_model(infinity_case.model), load_vae(infinity_case.vae)
    text = Text([0.2 * torch.randn(5, 256, generator=torch.Generator().manual_seed(1))])

    def tokens(*methods):
        steps = sample(model, vae, text, model.schedule(), model.defaults(), [3], methods=methods)
        return torch.cat([step.tokens.flatten() for step in steps])

    noisy = tokens(examples["TextNoise"](0.5))
    assert torch.equal(tokens(), tokens(examples["TextNoise"](0.0)))
    assert not torch.equal(tokens(), noisy)
    assert torch.equal(noisy, tokens(examples["TextNoise"](0.5)))


@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_a_method_across_the_images_of_a_batch(examples, infinity_case, cfg):
    """At cfg 4, rows are those of the images with the prompt, then those without it."""
    model, vae = load_model(infinity_case.model), load_vae(infinity_case.vae)
    text = Text([0.2 * torch.randn(5, 256, generator=torch.Generator().manual_seed(1))] * 3)
    settings = replace(model.defaults(), cfg=(cfg,))
    seen = []

    class Watch(Method):
        together = True

        def __init__(self, order):
            self.order = order

        def input(self, x, scale):
            if scale.side == 4:
                seen.append(x)
            return x

    methods = [Watch(-1), examples["FeatureRepulsion"](2.0), Watch(1)]
    how = (model.schedule(), settings, range(3))
    list(sample(model, vae, text, *how, methods=methods, exact_batch=True, maps=3))
    before, after = seen
    assert len(before) == (6 if cfg == 4 else 3)
    for old, new in zip(before.split(3), after.split(3), strict=True):
        assert (old - old.mean(0)).abs().mean() > 1e-3
        torch.testing.assert_close(new, old.mean(0) + 3 * (old - old.mean(0)), atol=1e-4, rtol=1e-4)


def test_a_toy_family(examples, infinity_case, tmp_path, monkeypatch):
    vae = load_vae(infinity_case.vae)
    bits = vae.token_kind.channels
    # every class wants its own bits: 8 where the class has a 1, so that chance has no say
    wanted = torch.randint(0, 2, (3, bits), generator=torch.Generator().manual_seed(0))
    head = torch.zeros(2 * bits, bits)
    head[torch.arange(bits) * 2 + 1, torch.arange(bits)] = 50.0
    tensors = {"class_embed.weight": 20.0 * (2 * wanted - 1), "head.weight": head}
    tensors["head.bias"] = torch.zeros(2 * bits)
    save_file(tensors, tmp_path / "toy.safetensors", {"patch_nums": "[1, 2, 4]"})
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, examples["Toy"]))
    monkeypatch.setattr("diversevar_core.checkpoints.loading.FAMILIES", families.FAMILIES)
    toy = load_model(tmp_path / "toy.safetensors")
    settings, labels = toy.defaults(), Labels(torch.tensor([0, 2]))
    steps = sample(toy, vae, labels, toy.schedule(), settings, [0, 1])
    for step in steps:
        assert step.tokens.shape == (2, step.scale.tokens, bits)
        assert torch.equal(step.tokens, wanted[[0, 2]][:, None].expand_as(step.tokens))
