"""``more_smooth`` blends what is drawn, and nothing that a method keeps or chooses."""

from dataclasses import replace

import pytest
import torch

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels
from diversevar_core.methods.keep import Keep
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings

PLAIN = Settings(cfg=(2.0,), cfg_schedule="flat", tau=(1.0,), top_k=0, top_p=0.0)
SMOOTH = replace(PLAIN, more_smooth=True)


@pytest.fixture(scope="module")
def pair(var_case):
    return load_model(var_case.model), load_vae(var_case.vae)


def steps(pair, settings, seeds, *methods):
    labels = Labels(torch.full((len(seeds),), 3))
    return list(sample(*pair, labels, pair[0].schedule(), settings, seeds, methods=methods))


def sums(vae, steps) -> list[torch.Tensor]:
    """f_hat after each map if every token were whole."""
    found, f_hat = [], None
    for step in steps:
        f_hat, _ = vae.accumulate(f_hat, step.tokens, step.scale)
        found.append(f_hat)
    return found


def test_kept_tokens_are_whole_and_drawn_ones_blended(pair):
    image = steps(pair, PLAIN, [99])
    maps, whole = [step.tokens for step in image], [step.f_hat for step in image]
    for kept in (len(maps), 2):
        got = steps(pair, SMOOTH, [1], Keep(maps, side=pair[0].schedule()[kept - 1].side))
        for k, step in enumerate(got):
            assert torch.allclose(step.f_hat, whole[k], atol=1e-5) == (k < kept)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    got = steps(pair, SMOOTH, [1], Keep(maps, mask=mask))
    blended = (sums(pair[1], got)[-1] - got[-1].f_hat).abs().amax(dim=(0, 1, 2))
    assert blended[-1] > 1e-3
    assert torch.allclose(got[0].f_hat, whole[0], atol=1e-5)  # the map of one token is kept


def test_repulsion_acts_on_what_is_blended(pair):
    repelled = steps(pair, SMOOTH, [1, 2], Repulsion(50.0, side=100))[-1].f_hat
    plain = steps(pair, SMOOTH, [1, 2])[-1].f_hat
    assert torch.equal(repelled[0], plain[0]) and not torch.equal(repelled[1], plain[1])


def test_the_tokens_that_path_search_chooses_are_those_of_the_image(pair):
    got = steps(pair, SMOOTH, [1], PathSearch(3, side=4))
    whole = sums(pair[1], got)
    for step, own in zip(got, whole, strict=True):
        assert torch.allclose(step.f_hat, own, atol=1e-5) == (step.scale.side <= 4)


def test_the_class_that_is_none_is_what_guidance_leads_away_from(pair):
    none = Labels(torch.tensor([pair[0].config.classes]))
    how = (*pair, none, pair[0].schedule())
    free, guided = (list(sample(*how, replace(PLAIN, cfg=(g,)), [1])) for g in (1.0, 4.0))
    for a, b in zip(free, guided, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=0)
