"""One batch from seeds to images: what starts refuse, which seeds come out, when models load."""

import pytest
import torch

from diversevar_core.conditions import Labels, Text
from diversevar_core.errors import UserError
from diversevar_core.job import PLAIN, Chain, draw
from diversevar_core.methods.keep import Keep
from diversevar_core.methods.starts import TOGETHER, Starts


def text(*seeds) -> Text:
    """A prompt for every seed."""
    prompts = [torch.randn(5, 256, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return Text([0.2 * prompt for prompt in prompts])


def drawn(pair, condition, chain=PLAIN, seed=100, **options):
    model, vae = pair
    how = (condition, model.schedule(), model.defaults(), seed, chain)
    return draw(model, vae, *how, **options)


def kept(pair, images: int, masks: int) -> Keep:
    model, vae = pair
    features = torch.zeros(images, vae.token_kind.channels, 16, 16)
    maps = vae.quantize_maps(features, model.schedule())
    return Keep(maps, side=1, mask=torch.ones(masks, 16, 16))


STARTS = Starts(20, side=2)


def test_starts_are_refused_where_images_do_not_show_the_same(pair):
    source = torch.zeros(2, 4, 8, 8)
    for condition, methods in (
        (text(1, 2), []),
        (Text(text(1, 1).positive, text(1, 2).positive), []),
        (Text(text(1, 1).positive, source=source), []),
        (text(1, 1), [kept(pair, 2, 1)]),
        (text(1, 1), [kept(pair, 1, 2)]),
    ):
        with pytest.raises(UserError, match="set starts to 1, or give one"):
            drawn(pair, condition, Chain(tuple(methods), STARTS))
        assert drawn(pair, condition, Chain(tuple(methods), Starts(2))).seeds == [100, 101]
    assert len(drawn(pair, text(1, 1), Chain((kept(pair, 1, 1),), STARTS)).seeds) == 2


def test_what_shows_the_same():
    assert Labels(torch.tensor([3, 3])).alike and not Labels(torch.tensor([3, 4])).alike
    assert text(1, 1).alike and not text(1, 2).alike
    assert Text(text(1, 1).positive, source=torch.zeros(1, 4, 8, 8)).alike


def test_seeds_past_the_last_are_those_that_they_draw_with(pair):
    both = drawn(pair, text(1, 1), seed=2**64 - 1)
    assert both.seeds == [2**64 - 1, 0]
    (*_, last), (*_, alone) = both.steps, drawn(pair, text(1), seed=0).steps
    assert torch.equal(last.tokens[1:], alone.tokens)


def test_models_are_made_ready_before_every_group_and_before_the_images(pair):
    seen = []
    compare = STARTS.compare
    starts = Starts(2 * TOGETHER + 1, 1, lambda step: seen.append("compare") or compare(step))
    drawn(pair, text(1, 1), Chain(starts=starts), ready=lambda: seen.append("ready"))
    assert seen == 3 * ["ready", "compare"] + ["ready"]


def test_the_maps_are_those_of_the_steps(pair):
    for travel in (None, 0, 2):
        found = drawn(pair, text(1), Chain(travel=travel))
        assert [scale.side for scale in found.maps] == [step.scale.side for step in found.steps]


def test_a_chain_has_one_choice_of_starts_and_one_travel():
    with pytest.raises(UserError, match="Diverse Seeds is connected twice"):
        Chain(starts=Starts(1)).with_starts(Starts(8))
    with pytest.raises(UserError, match="Scale Travel is connected twice"):
        Chain(travel=0).with_travel(4)
    with pytest.raises(UserError, match="number of 0 or more, not -1"):
        Chain(travel=-1)
