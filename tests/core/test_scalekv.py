"""ScaleKV: what each block keeps, against the published budgets and a plain softmax."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.methods.fastvar import FastVAR
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.scalekv import CompressedCache, ScaleKV, window_of
from diversevar_core.models.attention import sdpa
from diversevar_core.sampling.method import Context, Method
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import MAPS, PIXELS, infinity_schedule, square
from diversevar_core.settings import Guidance, Settings

SEEDS = (3, 4)
# budgets/*.json of StargazerX0/ScaleKV: blocks that keep more, and tokens for maps 9 to 13
PUBLISHED = {
    32: {
        9: ({0, 23}, 920, 632),
        10: ({0, 23}, 1490, 594),
        11: ({0, 23}, 2510, 526),
        12: ({0, 23}, 4100, 420),
        13: ({0}, 6385, 465),
    },
    40: {
        9: ({0, 1, 2}, 909, 629),
        10: ({0, 1, 2}, 1464, 584),
        11: ({0, 1, 2}, 2463, 503),
        12: ({0, 1, 2}, 4054, 374),
        13: ({0, 1, 2}, 6200, 200),
    },
}


def kept(method, schedule, depth):
    """Tokens (maps - 1, depth) that each block keeps after each map."""
    plan = [Guidance(1.0, 1.0)] * len(schedule)
    condition = Text([torch.zeros(1, 256)])
    acting = method.begin(Context(schedule, [0], [0], condition, plan, 2, depth))
    counts = np.array([[count for _, count in plan] for plan in acting.plans]).T
    return np.minimum(counts, [[scale.begin] for scale in schedule[1:]])


@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_budgets_to_their_rounding(depth):
    schedule = infinity_schedule()
    found = kept(ScaleKV(650 / 6425), schedule, depth)
    for scale, counts in zip(schedule[1:], found, strict=True):
        if scale.k < 8:
            assert (counts == scale.begin).all()
            continue
        few, most, least = PUBLISHED[depth][scale.k + 1]
        assert set(np.flatnonzero(counts > counts.min())) == few
        assert (counts.max(), counts.min()) == pytest.approx((most, least), rel=0.024)
        assert 0.995 * 650 * depth < counts.sum() <= 650 * depth


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("aspect", MAPS)
def test_the_budget_is_met_at_every_shape(aspect, pixels):
    schedule = infinity_schedule(aspect, pixels)
    for budget, depth in ((0.04, 32), (0.1, 12), (0.2, 40), (0.7, 4)):
        found = kept(ScaleKV(budget), schedule, depth)
        before = np.array([[scale.begin] for scale in schedule[1:]])
        mean = max(budget * schedule[-1].begin, 16)
        assert found[found < before].min() >= 16
        assert found.sum(axis=1).max() <= (mean + 0.5) * depth
        assert found.sum(axis=1)[-1] > 0.98 * mean * depth


def test_the_window_is_the_middle_of_each_patch():
    """As ScaleKVCluster places it on maps that a grid of 4 x 4 divides."""
    for side in (4, 8, 12, 16, 20, 24, 32, 40, 48):
        patch = side // 4
        middle = [i * patch + (patch - 1) // 2 for i in range(4)]
        want = [row * side + column for row in middle for column in middle]
        assert window_of(square((1, side))[1], side**2, torch.device("cpu")).tolist() == want


@pytest.mark.parametrize("tokens", [64, 40])
def test_tokens_that_the_window_attends_to_most_are_kept(tokens):
    """Against a float64 softmax; 40 tokens are part of a map, as with FastVAR."""
    schedule = square((1, 4, 8, 12))
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, 2, 3, 17 + tokens, 5, generator=generator)
    q *= 2
    cache = CompressedCache([(schedule[0], 1), (schedule[1], 17), (schedule[2], 30)])
    for part in (slice(1), slice(1, 17), slice(17, None)):
        seen = cache.extend(q[:, :, part], k[:, :, part], v[:, :, part])
    assert torch.equal(seen[0], k) and torch.equal(seen[1], v)  # the map itself sees all

    rows = (0, 2, 4, 6) if tokens == 64 else ()
    window = [17 + 8 * r + c for r in rows for c in rows]
    window = window or [17 + int(np.ceil((i + 0.5) * 2.5)) - 1 for i in range(16)]
    others = [i for i in range(17 + tokens) if i not in window]
    scores = np.zeros((2, 3, 17 + tokens))
    for r in range(2):
        for h in range(3):
            products = q[r, h, window].double().numpy() @ k[r, h, others].double().numpy().T
            odds = np.exp(products)
            scores[r, h, others] = (odds / odds.sum(axis=1, keepdims=True)).sum(axis=0)
    padded = np.pad(scores, ((0, 0), (0, 0), (2, 2)))
    scores = np.max([padded[..., i : i + 17 + tokens] for i in range(5)], axis=0)

    keys, values = cache.kept()
    assert keys.shape == values.shape == (2, 3, 30, 5)
    for r in range(2):
        for h in range(3):
            places = [int((k[r, h] == key).all(dim=1).nonzero()) for key in keys[r, h]]
            assert places == sorted(set(places)) and set(window) <= set(places)
            assert torch.equal(values[r, h], v[r, h, places])
            chosen = [i for i in places if i not in window]
            left = [i for i in others if i not in places]
            assert scores[r, h, chosen].min() >= scores[r, h, left].max() - 1e-6


def text(images):
    return Text([0.2 * torch.randn(5, 256, generator=torch.Generator().manual_seed(1))] * images)


def run(pair, methods, seeds=SEEDS, cfg=(4.0,), condition=None, **options):
    model, vae = pair
    settings = Settings(cfg=cfg, cfg_schedule="flat", tau=(0.5,), top_k=0, top_p=0.97)
    how = (model, vae, condition or text(len(seeds)), model.schedule(), settings, seeds)
    return list(sample(*how, methods=methods, **options))


def same(a, b):
    return all(torch.equal(x.logits, y.logits) for x, y in zip(a, b, strict=True))


class Watch(Method):
    """Records, after every map, the allocated bytes of each block's keys."""

    def __init__(self):
        self.sizes = []

    def step(self, advance, run, scale, at):
        run, left = advance(run, scale, at)
        keys = [cache.k for cache in run.model.caches if cache.k is not None]
        self.sizes.append([k.untyped_storage().nbytes() // (4 * len(k) * 256) for k in keys])
        return run, left


@pytest.mark.parametrize("more", [[], [FastVAR(0.5, skip=0)]])
def test_no_more_is_allocated_than_the_budget(pair, more):
    """0.25 of 265 tokens is 66 a block: less after the map of side 8, 121 tokens, and after 12."""
    watch = Watch()
    run(pair, [ScaleKV(0.25), *more, watch])
    schedule, (*sizes, last) = pair[0].schedule(), watch.sizes
    assert [scale.begin for scale in schedule] == [0, 1, 5, 21, 57, 121, 265]
    for scale, size in zip(schedule[1:], sizes, strict=True):
        assert sum(size) <= 4 * min(66, scale.begin)
    assert min(sizes[4]) < 66 < max(sizes[4]) and len(sizes[5]) == 4
    assert last == []


def test_images_change_where_tokens_are_left_out_and_not_before(pair):
    """26 tokens a block: the map of side 6 leaves 57."""
    plain, small = run(pair, []), run(pair, [ScaleKV(0.1)])
    assert same(plain[:4], small[:4])
    assert not torch.equal(plain[4].logits, small[4].logits)
    assert same(small, run(pair, [ScaleKV(0.1)]))


def test_the_first_maps_alone_are_those_of_the_whole_image(pair):
    """As diverse starts draw them: the budget is of the whole schedule."""
    whole, first = run(pair, [ScaleKV(0.1)]), run(pair, [ScaleKV(0.1)], maps=6)
    for a, b in zip(whole[:6], first, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=2e-4, rtol=0)


def test_all_of_the_budget_is_the_identity(pair):
    for options in ({}, {"cfg": (4.0,) * 4 + (1.0,)}, {"maps": 1}):
        assert same(run(pair, [], **options), run(pair, [ScaleKV(1.0)], **options))


@pytest.mark.parametrize(
    "more", [[], [FastVAR(0.5, skip=1)], [PathSearch(2, ahead=1)]], ids=["", "FastVAR", "paths"]
)
def test_an_image_of_a_batch_is_the_image_alone(pair, more):
    both = run(pair, [ScaleKV(0.1), *more], exact_batch=True)
    alone = run(pair, [ScaleKV(0.1), *more], seeds=SEEDS[1:])
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a.logits[1:], b.logits)


def test_images_computed_together_choose_their_own_tokens(pair):
    """As alone, but for how products round."""
    both = run(pair, [ScaleKV(0.1)])
    exact = run(pair, [ScaleKV(0.1)], exact_batch=True)
    for a, b in zip(both, exact, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=2e-4, rtol=0)


def test_a_fork_leaves_its_origin_as_it_was(pair):
    class Twice(Method):
        def step(self, advance, run, scale, at):
            _, first = advance(run.fork(), scale, at)
            run, left = advance(run.fork() if scale.k % 2 else run, scale, at)
            assert torch.equal(first.logits, left.logits)
            return run, left

    assert len(run(pair, [ScaleKV(0.1), Twice()])) == len(pair[0].schedule())


def test_where_guidance_ends_each_image_keeps_its_own_row(pair):
    """Against guidance so near 1 that it changes nothing but keeps the unconditional rows."""
    ended, near = (run(pair, [ScaleKV(0.2)], cfg=(4.0,) * 5 + (g,)) for g in (1.0, 1 + 1e-7))
    for a, b in zip(ended, near, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=0)


def test_an_edit_sees_the_whole_source_and_what_is_kept(cases):
    case, seen = cases["varedit_plain"], []

    def watching(q, k, v, mask, scale):
        seen.append((q.shape[2], k.shape[2]))
        return sdpa(q, k, v, mask, scale)

    pair = load_model(case.model, attention=watching), load_vae(case.vae)
    source = case.expected["run0.source_features"]
    edit = Text([case.expected["run0.text"]], source=source)
    edited = run(pair, [ScaleKV(0.1)], [1], condition=edit)
    sizes = sorted({m - n for n, m in seen if n == 256 and m > 300})  # the last map's
    assert sizes == [256 + 16, 256 + 56]  # 26 a block: 16 for three, and what is left, 56
    seen.clear()
    plain = run(pair, [], [1], condition=edit)
    assert {m - n for n, m in seen if n == 256 and m > 300} == {256 + 265}
    assert same(plain, run(pair, [ScaleKV(1.0)], [1], condition=edit))
    assert same(plain[:4], edited[:4]) and not same(plain, edited)
    other = replace(edit, source=torch.cat((source, source.flip(2))), positive=edit.positive * 2)
    both = run(pair, [ScaleKV(0.1)], [1, 2], condition=other, exact_batch=True)
    for a, b in zip(both, edited, strict=True):
        assert torch.equal(a.logits[:1], b.logits)


def test_a_model_of_classes_keeps_its_share(cases):
    case = cases["var_shared"]
    pair = load_model(case.model), load_vae(case.vae)
    labels = Labels(torch.tensor([2, 5]))
    plain, small, whole = (
        run(pair, methods, condition=labels, exact_batch=True)
        for methods in ([], [ScaleKV(0.5)], [ScaleKV(1.0)])
    )
    assert same(plain, whole) and same(plain[:4], small[:4]) and not same(plain, small)
    alone = run(pair, [ScaleKV(0.5)], SEEDS[1:], condition=Labels(torch.tensor([5])))
    assert torch.equal(small[-1].f_hat[1:], alone[-1].f_hat)
