"""What each diversity method promises: exact at strength 0, reproducible, on target."""

from functools import partial, reduce

import pytest
import torch

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.diversity import mean_distance, similarity
from diversevar_core.errors import UserError
from diversevar_core.job import PLAIN, Chain
from diversevar_core.methods.adaptive import TARGETS, AdaptiveScaling
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.keep import Keep
from diversevar_core.methods.path_search import PathSearch, log_likelihood
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.scalekv import ScaleKV
from diversevar_core.methods.ssr_sar import DiverseVAR
from diversevar_core.methods.starts import Starts, choose_starts, small_map
from diversevar_core.methods.text_noise import TextNoise, annealed
from diversevar_core.methods.travel import sample_and_travel
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import square
from diversevar_core.settings import Settings

SETTINGS = Settings(cfg=(4.0,), cfg_schedule="flat", tau=(0.5,), top_k=0, top_p=0.97)
EACH = {
    "SSR and SAR": DiverseVAR(ssr=1.0, sar=0.5),
    "adaptive scaling": AdaptiveScaling(1.0),
    "text noise": TextNoise(0.5),
    "repulsion": Repulsion(2.0),
    "path search": PathSearch(3, ahead=1),
    "FastVAR": FastVAR(0.5, skip=0),
    "ScaleKV": ScaleKV(0.1),
}
OFF = {
    "SSR and SAR": DiverseVAR(site="features"),
    "adaptive scaling": AdaptiveScaling(0.0),
    "text noise": TextNoise(0.0),
    "repulsion": Repulsion(0.0),
    "path search": PathSearch(1),
    "FastVAR": FastVAR(0.0, skip=0),
    "ScaleKV": ScaleKV(1.0),
}


@pytest.fixture(scope="module")
def var_pair(var_case):
    return load_model(var_case.model), load_vae(var_case.vae)


def text(images):
    features = 0.2 * torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    return Text([features] * images)


def run(pair, seeds, methods=(), exact=True, condition=None, maps=5, **settings):
    """Sides 1, 2, 4, 6 and 8 only, unless more are asked for."""
    model, vae = pair
    condition = condition or text(len(seeds))
    how = Settings(**{**SETTINGS.__dict__, **settings})
    models = (model, vae, condition, model.schedule())
    return list(sample(*models, how, seeds, methods=methods, exact_batch=exact, maps=maps))


def tokens(*args, **options):
    return [step.tokens for step in run(*args, **options)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OFF)
def test_strength_zero_is_the_identity(pair, name):
    exact = not OFF[name].together
    plain, off = (run(pair, [7, 9], methods, exact) for methods in ([], [OFF[name]]))
    assert same([s.tokens for s in plain], [s.tokens for s in off])
    assert same([s.f_hat for s in plain], [s.f_hat for s in off])


@pytest.mark.parametrize("name", EACH)
def test_two_of_a_kind_are_refused(name):
    """Their order would decide."""
    two = [EACH[name], OFF[name]]
    for methods in (two, two[::-1], [two[0], *OFF.values()]):
        with pytest.raises(UserError, match="is connected twice, and can act only once"):
            reduce(Chain.add, methods, PLAIN)


@pytest.mark.parametrize("name", EACH)
def test_each_method_changes_images(pair, name):
    exact = not EACH[name].together
    assert not same(tokens(pair, [7, 9], (), exact), tokens(pair, [7, 9], [EACH[name]], exact))


@pytest.mark.parametrize("name", [name for name in EACH if name != "repulsion"])
def test_an_image_of_a_batch_is_the_image_alone(pair, name):
    both = tokens(pair, [3, 8], [EACH[name]])
    alone = tokens(pair, [8], [EACH[name]])
    assert same([t[1:] for t in both], alone)


def test_ssr_may_act_before_the_level(pair):
    before, after = (DiverseVAR(ssr=1.0, site=site) for site in ("features", "model"))
    drawn = [tokens(pair, [7], [method]) for method in (before, after)]
    assert not same(*drawn) and not same(drawn[0], tokens(pair, [7]))


def test_the_whole_chain_is_the_same_again_in_any_order(pair):
    plain = tokens(pair, [5], maps=None)
    chain = [*EACH.values(), Keep(plain, side=1)]
    first, again, turned = (
        tokens(pair, [3, 4, 5], methods) for methods in (chain, chain, chain[::-1])
    )
    assert same(first, again)
    assert same(first, turned)
    assert torch.equal(first[0], plain[0].expand_as(first[0]))  # kept, whatever the others do
    assert not same(first, tokens(pair, [13, 14, 15], chain))


def test_codebooks_take_every_method_but_text_noise(var_pair):
    labels, chain = Labels(torch.tensor([2, 2])), [EACH["adaptive scaling"], EACH["repulsion"]]
    plain, changed = (
        tokens(var_pair, [0, 1], methods, False, labels, tau=(0.2,))
        for methods in ([], [*chain, EACH["path search"]])
    )
    assert not same(plain, changed)
    with pytest.raises(UserError, match="this one reads classes"):
        tokens(var_pair, [0, 1], [TextNoise()], condition=labels)


def test_only_the_first_maps_can_be_drawn(pair):
    whole, first = tokens(pair, [1, 2], exact=False), []
    model, vae = pair
    for step in sample(model, vae, text(2), model.schedule(), SETTINGS, [1, 2], maps=3):
        first.append(step.tokens)
    assert len(first) == 3
    assert same(whole[:3], first)


def certainty(logits):
    """The largest probability of two is the sigmoid of the distance of their logits."""
    return logits.double().unflatten(-1, (16, 2)).diff(dim=-1).abs().sigmoid().mean((1, 2, 3))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_adaptive_scaling_meets_its_targets(strength):
    """20 halvings of 1 to 8 leave 7e-6, times a slope of less than 1."""
    spread = torch.tensor([1.5, 2.0, 2.5]).view(3, 1, 1)
    for k, target in enumerate(TARGETS):
        generator = torch.Generator().manual_seed(k)
        logits = spread * torch.randn(3, scale(k).tokens, 32, generator=generator)
        got = AdaptiveScaling(strength).logits(logits, scale(k))
        target = torch.tensor(1 - strength * (1 - target), dtype=torch.float64)
        want = certainty(logits).minimum(target)
        torch.testing.assert_close(certainty(got), want, atol=1e-5, rtol=0)
        ratio = logits / got  # one temperature an image
        torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    late = torch.randn(1, scale(6).tokens, 32)
    assert torch.equal(AdaptiveScaling(strength).logits(late, scale(6)), late)


def test_adaptive_scaling_goes_no_further_than_its_largest_temperature():
    logits = 1000 * torch.ones(1, 1, 4).cumsum(-1)
    torch.testing.assert_close(AdaptiveScaling(1.0).logits(logits, scale(0)), logits / 8)


def test_adaptive_scaling_does_not_change_uncertain_maps():
    logits = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.equal(AdaptiveScaling(1.0).logits(logits, scale(0)), logits)


def scale(k):
    return square((1, 2, 4, 6, 8, 12, 16))[k]


def test_text_noise_is_annealed_from_noise_to_text():
    assert [annealed(t, 0.6, 0.9) for t in (1.0, 0.9, 0.6, 0.0)] == [0, 0, 1, 1]
    assert annealed(0.75, 0.6, 0.9) == pytest.approx(0.5)
    y = 3 + 2 * torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    n = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    noise = TextNoise(0.25, rescale=1.0)
    only = noise.blend(y, n, 0.0)  # nothing of the text but its mean and deviation
    torch.testing.assert_close(only, (n - n.mean()) / n.std() * y.std() + y.mean())
    torch.testing.assert_close(noise.blend(y, n, 1.0), y)
    torch.testing.assert_close(TextNoise(0.25, rescale=0.0).blend(y, n, 0.0), 0.25 * n)


def test_text_noise_ends_and_leaves_the_draws_as_they_were(pair):
    """Maps after the noise follow the clean text: with kept coarse tokens they are the same."""
    plain = tokens(pair, [4], maps=None)
    noisy = tokens(pair, [4], [TextNoise(0.5), Keep(plain, side=4)])  # sides 6 and on are clean
    first_clean = next(k for k in range(7) if 1 - k / 6 <= 0.6)
    assert first_clean == 3
    assert same(plain[:3], noisy[:3])
    assert not same(tokens(pair, [4], [TextNoise(0.5)])[:3], plain[:3])


def test_repulsion_lowers_what_earlier_images_drew():
    """A choice's logit falls by the strength times the share of earlier images that drew it."""
    logits = torch.randn(1, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    before = [
        torch.tensor([0, 2]),
        torch.tensor([0, 1]),
        torch.tensor([1, 2]),
        torch.tensor([0, 2]),
    ]
    before = [tokens.view(1, 2, 1) for tokens in before]
    lower = logits - Repulsion(8.0).image_logits(logits, scale(0), before)
    assert torch.allclose(lower[0, :, 0], torch.tensor([[6.0, 2.0, 0.0], [0.0, 2.0, 6.0]]))
    assert Repulsion(8.0).image_logits(logits, scale(0), []) is logits


def test_repulsion_spreads_a_batch_and_leaves_its_first_image(pair):
    seeds = range(6)
    plain, apart = (
        run(pair, seeds, methods, False)[2] for methods in ([], [Repulsion(8.0, side=4)])
    )
    assert torch.equal(plain.tokens[0], apart.tokens[0])
    assert mean_distance(apart.f_hat.flatten(1)) > 1.1 * mean_distance(plain.f_hat.flatten(1))


def test_path_search_finds_likelier_maps(pair):
    def likelihood(methods):
        step = run(pair, [0, 1, 2, 3], methods, tau=(1.0,), cfg=(1.0,), top_p=0.0)[0]
        return log_likelihood(step.logits, step.tokens, 2).sum()

    assert likelihood([PathSearch(8, ahead=0, side=1)]) > likelihood([]) + 2


def test_path_search_keeps_the_path_of_the_least_mean_energy(pair):
    """Energies of all candidates computed again; the largest of a path's means choose otherwise."""

    class Watch(Method):
        def __init__(self):
            self.seen = []

        def step(self, advance, batch, scale, guidance):
            batch, step = advance(batch, scale, guidance)
            ones = step.logits.double().view(1, -1, 2).diff().squeeze(-1)  # log-odds of a 1
            bits = torch.distributions.Bernoulli(logits=ones)
            self.seen.append((step.tokens, -bits.log_prob(step.tokens.view(1, -1).double())))
            return batch, step

    otherwise = 0
    for seed in range(6):
        watch = Watch()
        run(pair, [seed], [watch, PathSearch(4, ahead=1, side=2)], tau=(1.0,), cfg=(1.0,), maps=3)
        for k in range(2):  # four candidates with the map after each, then the chosen one
            drawn = watch.seen[9 * k : 9 * (k + 1)]
            paths = [torch.cat((drawn[2 * i][1], drawn[2 * i + 1][1]), dim=1) for i in range(4)]
            best = min(range(4), key=lambda i: paths[i].mean())
            assert torch.equal(drawn[8][0], drawn[2 * best][0])
            worst = min(range(4), key=lambda i: paths[i].max())
            otherwise += not torch.equal(drawn[8][0], drawn[2 * worst][0])
    assert otherwise


@pytest.mark.parametrize("more", [[], [ScaleKV(0.1)], [FastVAR(0.5, skip=0)]])
def test_candidates_of_a_path_share_one_cache(pair, more):
    """At every map but the first, whose candidates each make theirs and are forgotten."""

    class Watch(Method):
        def __init__(self):
            self.places = {}

        def step(self, advance, run, scale, at):
            before = run.model.caches[0].k
            run, left = advance(run, scale, at)
            after = run.model.caches[0].k
            if before is not None and after is not None:
                self.places.setdefault(scale.k, []).append(before.data_ptr() == after.data_ptr())
            return run, left

    watch, search = Watch(), PathSearch(3, ahead=2, side=6)
    found = tokens(pair, [3, 4], [*more, watch, search], maps=None)
    if not more:
        assert all(map(all, watch.places.values()))
        assert len(watch.places[3]) == 2 * (1 + 3 * 3)  # of each image: itself, and candidates
    assert same(found, tokens(pair, [3, 4], [*more, FreshForks(), search], maps=None))


class FreshForks(Method):
    """Sharing a cache gives the same result as a copy of it for each candidate."""

    order = 0

    def step(self, advance, run, scale, at):
        for cache in run.model.caches:
            if cache.k is not None:
                cache.k, cache.v = cache.k.clone(), cache.v.clone()
        return advance(run, scale, at)


def test_travel_keeps_the_finished_images_coarse_maps_and_draws_the_rest(pair):
    model, vae = pair
    how = (*pair, text(2), model.schedule(), SETTINGS, [3, 4])

    def travelled(methods, side):
        drawn = partial(sample, *how, False)
        return list(sample_and_travel(drawn, vae, model.schedule(), methods, side))

    steps = travelled([TextNoise(1.0)], 4)
    once, again = steps[:7], steps[7:]
    with torch.no_grad():
        features = vae.features(vae.decode(once[-1].f_hat))
        maps = vae.quantize_maps(features, model.schedule())
    assert same(maps[:3], [step.tokens for step in again[:3]])
    clean = list(sample(*how, methods=[Keep(maps, side=4)]))  # of the noise nothing is left
    assert same([step.tokens for step in clean], [step.tokens for step in again])
    whole = travelled([], 16)
    with torch.no_grad():
        features = vae.features(vae.decode(whole[6].f_hat))
        maps = vae.quantize_maps(features, model.schedule())
    assert same(maps, [step.tokens for step in whole[7:]])  # unchanged: its own tokens


def test_travel_decodes_and_encodes_one_image_at_a_time(pair):
    rows, (model, vae) = [], pair
    parts = (vae.decoder, vae.encoder)
    hooks = [part.register_forward_pre_hook(lambda _, x: rows.append(len(x[0]))) for part in parts]
    drawn = partial(sample, *pair, text(3), model.schedule(), SETTINGS, [3, 4, 5], False)
    list(sample_and_travel(drawn, vae, model.schedule(), [], 4))
    for hook in hooks:
        hook.remove()
    assert rows == [1] * 6


def starts(pair, candidates, count, methods=(), **options):
    model, vae = pair
    how = (model, vae, text(count), model.schedule(), SETTINGS)
    return choose_starts(Starts(candidates, **options), count, *how, 100, methods)


def test_chosen_starts_lie_farther_apart_than_the_first_seeds(pair):
    seeds = starts(pair, 40, 6, side=4)
    assert seeds == sorted(set(seeds)) and set(seeds) <= set(range(100, 140))

    def nearest(seeds):
        near = similarity(small_map(run(pair, seeds)[2]))
        return (near - 2 * torch.eye(len(near))).max()

    assert nearest(seeds) < nearest(range(100, 106)) - 0.01


def test_a_chosen_start_is_the_image_of_its_seed_alone(pair):
    methods = [DiverseVAR(ssr=1.0), PathSearch(2)]
    seeds = starts(pair, 12, 2, methods, side=2)
    assert seeds != [100, 101]
    together = run(pair, seeds, methods, maps=None)[-1].f_hat
    for image, seed in zip(together, seeds, strict=True):
        assert torch.equal(image, run(pair, [seed], methods, maps=None)[-1].f_hat[0])


def test_there_is_nothing_to_choose_for_one_image_or_among_too_few(pair):
    assert starts(pair, 40, 1) == [100]
    assert starts(pair, 3, 3) == [100, 101, 102]
    assert starts(pair, 1, 2) == [100, 101]


def test_starts_can_be_compared_by_anything(pair):
    """Only the first bit of the first token counts: both of its values are chosen."""

    def bit(step):
        return 2.0 * (step.f_hat[:, :1, 0, 0] > 0) - 1

    seeds = starts(pair, 24, 2, compare=bit, side=1)
    values = bit(run(pair, seeds)[0]).flatten().tolist()
    assert sorted(values) == [-1, 1]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AdaptiveScaling(2.0), "from 0 to 1, not 2"),
        (lambda: TextNoise(float("nan")), "text noise must be a number of 0 or more, not nan"),
        (lambda: TextNoise(begin_time=0.9, end_time=0.6), "must be 0 or more and below its end"),
        (lambda: TextNoise(rescale=3.0), "rescale must be a number from 0 to 1"),
        (lambda: Repulsion(-1.0), "repulsion must be a number of 0 or more"),
        (lambda: PathSearch(0), "candidates must be a number of 1 or more"),
        (lambda: Starts(0), "candidates must be a number of 1 or more"),
        (lambda: FastVAR(1.0), "prune must be a number from 0 to 0.99"),
        (lambda: ScaleKV(0.0), "budget must be a number from 0.01 to 1"),
    ],
)
def test_impossible_numbers_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
