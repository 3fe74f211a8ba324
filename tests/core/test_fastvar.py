"""FastVAR: some tokens of the last maps, at their positions, against the whole maps."""

import numpy as np
import pytest
import torch

from diversevar_core.conditions import Text
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.sampling.method import Context
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import MAPS, infinity_schedule, square
from diversevar_core.settings import Guidance, Settings

SEEDS = (3, 4)


def text(images):
    return Text([0.2 * torch.randn(5, 256, generator=torch.Generator().manual_seed(1))] * images)


def run(pair, method, cfg=(4.0,), seeds=SEEDS, **options):
    model, vae = pair
    settings = Settings(cfg=cfg, cfg_schedule="flat", tau=(0.5,), top_k=0, top_p=0.97)
    how = (model, vae, text(len(seeds)), model.schedule(), settings, seeds)
    return list(sample(*how, methods=[method], **options))


def begun(method, schedule, depth=32):
    plan = [Guidance(1.0, 1.0)] * len(method.drawn(schedule))
    return method.begin(Context(schedule, [0], [0], text(1), plan, 2, depth))


@pytest.mark.parametrize("aspect", MAPS)
def test_published_strengths_prune_and_skip_what_the_paper_does(aspect):
    schedule = infinity_schedule(aspect)
    drawn = FastVAR().drawn(schedule)
    acting = begun(FastVAR(), schedule)
    assert drawn[-1].side == 40
    assert {schedule[k].side: share for k, share in acting.shares.items()} == {32: 0.4, 40: 0.5}
    assert acting.whole.side == 24
    assert acting.blocks == range(3, 28)
    assert FastVAR().memory(7, 2, schedule, 32) == 7 + 25 * acting.whole.tokens * 2
    assert (
        FastVAR(0.0).memory(7, 2, schedule, 32) == FastVAR(skip=12).memory(7, 2, schedule, 32) == 7
    )


@torch.no_grad()
def test_a_block_on_some_tokens_sees_only_those_at_their_places(pair):
    """Against the block on all tokens with a mask that hides the others."""
    model, _ = pair
    scale = model.schedule()[-1]
    state = model.start(model.schedule(), 1, guided=True)
    model.condition(state, text(1))
    model.positions(state, scale)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, scale.tokens, model.width, generator=generator)
    order = torch.stack([torch.randperm(scale.tokens, generator=generator) for _ in range(2)])
    places = order[:, :70]
    got = model.block(state, 0, scale, torch.stack([x[i, places[i]] for i in range(2)]), places)
    for i in range(2):
        seen = torch.zeros(scale.tokens, dtype=torch.bool)
        seen[places[i]] = True
        mask = seen.expand(1, 1, scale.tokens, -1)
        prepared = model.blocks[0].prepare(state.terms[i : i + 1], state.text[i : i + 1])
        want = model.blocks[0](x[i : i + 1], prepared, None, None, state.rotary, mask)
        torch.testing.assert_close(got[i], want[0, places[i]], atol=2e-5, rtol=1e-5)


def test_tokens_that_differ_least_take_the_change_of_the_last_whole_map():
    """Blocks that add a number a map: 1 to the whole one, 5 to the pruned one."""
    schedule = square((1, 2, 4, 8))
    acting = begun(FastVAR(0.5, skip=0), schedule)
    x = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    assert {schedule[k].side for k in acting.shares} == {4, 8} and acting.whole.side == 2
    acting.block(lambda x, token_index=None: x + 1, 5, acting.whole, x[:, :4])
    added = acting.block(lambda x, token_index=None: x + 5, 5, schedule[3], x) - x
    far = np.square(x.numpy() - x.numpy().mean(axis=1, keepdims=True)).sum(axis=2)
    for row in range(2):
        last = np.argsort(far[row])
        torch.testing.assert_close(added[row, last[32:]], torch.full((32, 3), 5.0))
        torch.testing.assert_close(added[row, last[:32]], torch.full((32, 3), 1.0))
    early = acting.block(
        lambda x, token_index=None: x + 7, 0, schedule[3], x
    )  # before the middle ones
    torch.testing.assert_close(early, x + 7)


def test_skipped_maps_are_not_drawn_and_the_others_are_what_they_were(pair):
    model, _ = pair
    whole, short = run(pair, FastVAR(0.0, skip=0)), run(pair, FastVAR(0.0, skip=2))
    assert len(short) == len(whole) - 2
    for a, b in zip(whole, short, strict=False):
        assert torch.equal(a.tokens, b.tokens)
    assert short[-1].f_hat.shape == whole[-1].f_hat.shape
    assert len(run(pair, FastVAR(0.0, skip=2), maps=3)) == 3  # as diverse starts draw them
    assert len(run(pair, FastVAR(0.0, skip=12))) == 1


def test_guidance_may_end_before_the_pruned_maps(pair):
    """The unconditional rows are gone there: as if each map's guidance were written out."""
    ends = (4.0,) * 4 + (1.0,)
    steps = run(pair, FastVAR(0.5, skip=0), cfg=ends)
    assert steps[-1].scale.last
    whole = run(pair, FastVAR(0.0, skip=0), cfg=ends)
    for a, b in zip(whole, steps, strict=True):
        assert torch.equal(a.tokens, b.tokens) or 2 * a.scale.side >= whole[-1].scale.side


def test_a_batch_draws_the_images_of_its_seeds(pair):
    both = run(pair, FastVAR(), exact_batch=True)[-1].f_hat
    for image, seed in zip(both, SEEDS, strict=True):
        assert torch.equal(image, run(pair, FastVAR(), seeds=[seed])[-1].f_hat[0])
