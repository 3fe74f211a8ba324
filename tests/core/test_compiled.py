"""Blocks that torch compiles."""

import torch
from torch._dynamo.utils import counters

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.models.compiled import compile_blocks
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings


def test_compiled_blocks_draw_the_same_tokens_and_are_compiled_once(var_case, monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)  # torch has it from 2.6 on
    model, vae = load_model(var_case.model), load_vae(var_case.vae)
    schedule = model.schedule()
    settings = Settings((2.0,), "flat", (1.0,), 0, 0.95, guidance_end=schedule[-2].side)

    def drawn(*methods):
        how = (model, vae, Labels(torch.tensor([3])), schedule, settings, [0])
        return torch.cat([step.tokens for step in sample(*how, methods=methods)], dim=1)

    want, kept = drawn(), drawn(ScaleKV(0.5))
    compile_blocks(model, "cpu")
    counters.clear()
    assert torch.equal(drawn(), want)
    made = counters["stats"]["unique_graphs"]
    assert made > 0
    assert torch.equal(drawn(), want) and torch.equal(drawn(ScaleKV(0.5)), kept)
    assert counters["stats"]["unique_graphs"] == made
