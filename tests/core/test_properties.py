"""Random chains of methods on every family: what is true of all of them.

The only error is a UserError with one sentence. With ``exact_batch``, an image of a batch is the
same as its seed alone gives. It is the same again when repeated, with the methods in another order,
with additional methods that do nothing, and after a failed run.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.errors import UserError
from diversevar_core.job import Chain, draw
from diversevar_core.methods.adaptive import AdaptiveScaling
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.keep import Keep
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.methods.ssr_sar import DiverseVAR
from diversevar_core.methods.starts import Starts
from diversevar_core.methods.text_noise import TextNoise

FAMILIES = {"var": "var_shared", "infinity": "infinity_plain", "varedit": "varedit_plain"}
METHODS = (
    DiverseVAR(ssr=1.0, sar=0.5, sides=(2,)),
    DiverseVAR(ssr=2.0, sar=0.25, sides=(1, 2), site="block", relative=False),
    DiverseVAR(ssr=8.0, sar=4.0, site="features"),
    DiverseVAR(sar=4.0, sar_alpha=1e30, sides=(1, 2), site="block"),  # overflows
    AdaptiveScaling(1.0),
    TextNoise(1.0, end_time=1.25),
    Repulsion(8.0),
    PathSearch(2, ahead=1, side=2),
    PathSearch(2, ahead=12, side=3),
    FastVAR(0.5, skip=1),
    FastVAR(0.95, skip=12),
    ScaleKV(0.1),
    ScaleKV(0.01),
)
STARTS = Starts(4, side=2)
NEUTRAL = (
    DiverseVAR(site="block"),
    AdaptiveScaling(0.0),
    PathSearch(1),
    FastVAR(0.0, skip=0),
    ScaleKV(1.0),
)


@pytest.fixture(scope="module")
def pairs(cases):
    found = {}
    for family, name in FAMILIES.items():
        model, vae = load_model(cases[name].model), load_vae(cases[name].vae)
        if model.config.sides is None:  # small maps, so that many are drawn
            model.config = replace(model.config, sides=(1, 2, 3, 4, 6))
        found[family] = model, vae
    return found


def condition_of(model, batch: int, each: bool):
    """The same for all images; ``each``: an edit's source is given for every image."""
    if model.reads is Labels:
        return Labels(torch.tensor([3] * batch))
    random = torch.Generator().manual_seed(1)
    text = 0.2 * torch.randn(5, model.config.text, generator=random)
    if not model.edits:
        return Text([text] * batch)
    source = torch.randn(1, model.config.bits, *model.schedule()[-1].full, generator=random)
    return Text([text] * batch, source=source.expand(batch if each else 1, -1, -1, -1))


def kept(pair, count: int, side: int, masked: bool) -> Keep:
    """Images to keep tokens of: one for all, or one each."""
    model, vae = pair
    schedule, random = model.schedule(), torch.Generator().manual_seed(2)
    channels = vae.token_kind.channels
    features = torch.randn(count, channels, *schedule[-1].full, generator=random)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    with torch.no_grad():
        maps = vae.quantize_maps(features, schedule)
    return Keep(maps, side, mask if masked else None)


def drawn(pair, chain: Chain, settings, seed: int, batch: int, each=False, exact=True):
    """f_hat and the images' seeds, or the message of a UserError."""
    condition = condition_of(pair[0], batch, each)
    how = (*pair, condition, pair[0].schedule(), settings)
    try:
        found = draw(*how, seed, chain, exact_batch=exact)
        *_, last = found.steps
    except UserError as error:
        said = str(error)
        assert said.endswith(".") and len(said) < 500 and "\n" not in said
        return said
    assert last.f_hat.isfinite().all()
    return last.f_hat, found.seeds


def same(a, b) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return torch.equal(a[0], b[0]) and list(a[1]) == list(b[1])


@settings(
    max_examples=30,  # less than a minute on a busy machine, and so on a failure: as it was found
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    family=st.sampled_from(("var", "var", "infinity", "varedit")),
    acting=st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique_by=type),
    starts=st.sampled_from((None, None, Starts(1), STARTS)),
    travel=st.sampled_from((None, None, 0, 2)),
    neutral=st.sampled_from(NEUTRAL),
    batch=st.sampled_from((1, 3)),
    seed=st.sampled_from((7, 2**64 - 1)),
    image=st.sampled_from((None, None, "one", "each")),
    side=st.sampled_from((0, 2, 6)),
    masked=st.booleans(),
    exact=st.booleans(),
    guided=st.sampled_from(((0, 0), (3, 0), (0, 2), (6, 0))),
    cfg=st.sampled_from((1.0, 4.0)),
)
def test_any_chain_keeps_its_promises(
    pairs,
    family,
    acting,
    starts,
    travel,
    neutral,
    batch,
    seed,
    image,
    side,
    masked,
    exact,
    guided,
    cfg,
):
    pair = pairs[family]
    guidance_start, guidance_end = guided
    own = replace(
        pair[0].defaults(),
        cfg=(cfg,),
        tau=(0.5,),
        guidance_start=guidance_start,
        guidance_end=guidance_end,
    )
    each = image == "each"
    keep = [] if image is None else [kept(pair, batch if each else 1, side, masked)]
    plain = drawn(pair, Chain((*keep,)), own, seed, batch, each)
    methods = (*keep, *acting)

    def sampled(methods, starts=starts):
        return drawn(pair, Chain(methods, starts, travel), own, seed, batch, each, exact)

    first = sampled(methods)
    assert same(first, sampled(methods[::-1]))
    if starts is None:
        assert same(first, sampled(methods, Starts(1)))
    if type(neutral) not in map(type, acting):
        assert same(first, sampled((neutral, *methods)))
    together = any(method.together for method in acting)
    if exact and batch > 1 and not each and not together and not isinstance(first, str):
        f_hat, seeds = first
        alone, _ = drawn(pair, Chain(methods, travel=travel), own, seeds[-1], 1)
        assert torch.equal(f_hat[-1:], alone)
    assert same(plain, drawn(pair, Chain((*keep,)), own, seed, batch, each))
