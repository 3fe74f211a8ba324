"""What seeds, batches and methods mean for the images."""

from dataclasses import replace

import pytest
import torch

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.errors import UserError
from diversevar_core.methods.ssr_sar import DiverseVAR
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.random import PerImage, pick, truncate
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings

SETTINGS = Settings(cfg=(4.0,), cfg_schedule="flat", tau=(0.5,), top_k=900, top_p=0.97)


def prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [0.2 * torch.randn(length, 256, generator=generator) for length in lengths]


def tokens(pair, texts, seed, settings=SETTINGS, methods=(), shared=False):
    model, vae = pair
    schedule = model.schedule()
    seeds = range(seed, seed + len(texts))
    steps = sample(model, vae, Text(texts), schedule, settings, seeds, shared, methods, True)
    return [step.tokens for step in steps]


def test_an_image_of_a_batch_is_the_image_alone(pair):
    texts = prompts(5, 3, 7)
    together = tokens(pair, texts, 40, methods=[DiverseVAR(ssr=1.0, sar=0.5)])
    for i, text in enumerate(texts):
        alone = tokens(pair, [text], 40 + i, methods=[DiverseVAR(ssr=1.0, sar=0.5)])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(("cfg_schedule", "none"), [("flat", 1.0), ("ramp", 0.0)])
def test_maps_before_the_guided_ones_are_drawn_without_guidance(pair, cfg_schedule, none):
    texts, schedule = prompts(4), pair[0].schedule()
    settings = replace(SETTINGS, cfg_schedule=cfg_schedule)
    free = tokens(pair, texts, 1, replace(settings, cfg=(none,), tau=(1.0,)))
    late = tokens(pair, texts, 1, replace(settings, guidance_start=6))
    same = [torch.equal(a, b) for a, b in zip(free, late, strict=True)]
    assert same == [scale.side < 6 for scale in schedule]


@pytest.mark.parametrize("cfg_schedule", ["flat", "ramp"])
def test_maps_after_the_guided_ones_are_drawn_without_guidance(pair, cfg_schedule):
    texts, schedule = prompts(4), pair[0].schedule()
    settings = replace(SETTINGS, cfg_schedule=cfg_schedule)
    whole = tokens(pair, texts, 1, settings)
    short = tokens(pair, texts, 1, replace(settings, guidance_end=6))
    same = [torch.equal(a, b) for a, b in zip(whole, short, strict=True)]
    assert same == [scale.side <= 6 for scale in schedule]
    if cfg_schedule == "flat":
        listed = replace(settings, cfg=(*settings.cfg * 4, 1.0))
        assert all(map(torch.equal, short, tokens(pair, texts, 1, listed)))


class CountRows(Method):
    """Records the number of rows in the blocks at every map."""

    def __init__(self):
        self.rows = []

    def output(self, x, scale):
        self.rows.append(len(x))
        return x


@pytest.mark.parametrize("name", ["infinity_plain", "varedit_plain", "var_plain"])
def test_rows_without_guidance_are_dropped_without_effect(cases, name):
    case = cases[name]
    model, vae = load_model(case.model), load_vae(case.vae)
    condition = Labels(torch.tensor([3, 5])) if model.reads is Labels else Text(prompts(4, 6))
    if model.edits:
        h, w = model.schedule()[-1].full
        source = torch.randn(1, model.config.bits, h, w, generator=torch.Generator().manual_seed(2))
        condition = replace(condition, source=source)
    left = {}
    for end in (1.0, 1 + 1e-9):  # the second is guidance that changes nothing
        settings = replace(SETTINGS, cfg=(4.0, 1.0, 4.0, end))
        methods = [CountRows(), DiverseVAR(ssr=1.0, sar=0.5)]
        how = (model.schedule(), settings, [1, 2])
        steps = list(sample(model, vae, condition, *how, methods=methods))
        left[end] = methods[0].rows, steps
    (dropped, ours), (kept, theirs) = left.values()
    assert dropped == [4] * 3 + [2] * (len(kept) - 3) and set(kept) == {4}
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=0)


def test_one_image_is_the_same_with_either_stream(pair):
    texts = prompts(4)
    for a, b in zip(tokens(pair, texts, 3), tokens(pair, texts, 3, shared=True), strict=True):
        assert torch.equal(a, b)


def test_the_draw_is_torchs_multinomial():
    logits = torch.randn(1, 500, 20, generator=torch.Generator().manual_seed(0))
    want = torch.multinomial(
        logits.softmax(-1)[0], 1, replacement=True, generator=torch.Generator().manual_seed(7)
    )
    noise = PerImage([7]).exponential(tuple(logits.shape), logits.device)
    assert torch.equal(pick(logits, noise)[0], want[:, 0])


def test_truncation_keeps_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert truncate(logits, 2, 0.0).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0, 0.6).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0, 0.4).isfinite().tolist() == [[True, False, False, False]]
    assert truncate(logits, 0, 0.0).isfinite().all()


def test_the_method_changes_images_and_strength_zero_does_not(pair):
    texts = prompts(4)
    plain = tokens(pair, texts, 3)
    off = tokens(pair, texts, 3, methods=[DiverseVAR(site="block")])
    on = tokens(pair, texts, 3, methods=[DiverseVAR(sar=2.0)])
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain[:2], on[:2], strict=True))  # sides 1, 2
    assert not torch.equal(plain[2], on[2])  # side 4


def test_a_method_sees_every_stage(pair):
    class Recorder(Method):
        def __init__(self):
            self.seen = []

        def text(self, condition, scale):
            self.seen.append("text")
            return condition

        def input(self, x, scale):
            self.seen.append("input")
            return x

        def block(self, run, i, scale, x):
            self.seen.append(f"block {i}")
            return run(x)

        def output(self, x, scale):
            self.seen.append("output")
            return x

        def logits(self, logits, scale):
            self.seen.append("logits")
            return logits

        def tokens(self, tokens, scale):
            self.seen.append("tokens")
            return tokens

    recorder = Recorder()
    tokens(pair, prompts(4), 0, methods=[recorder])
    blocks = [f"block {i}" for i in range(4)]
    assert recorder.seen == ["text", "input", *blocks, "output", "logits", "tokens"] * 7


def test_text_changed_at_a_scale_counts_from_there(pair):
    first, second = prompts(4, 6)

    class Swap(Method):
        def text(self, condition, scale):
            return Text([second]) if scale.k >= 3 else condition

    plain, other = tokens(pair, [first], 0), tokens(pair, [first], 0, methods=[Swap()])
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], other[:3], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plain[3:], other[3:], strict=True))


def eager(q, k, v, mask, scale):
    """Attention as its formula is written."""
    scores = (q * scale) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def test_eager_attention_agrees_with_the_fused_kernel(infinity_case, pair):
    model = load_model(infinity_case.model, attention=eager)
    texts = prompts(5, 2)
    condition, schedule = Text(texts), model.schedule()
    steps = [
        list(sample(m, pair[1], condition, schedule, SETTINGS, [0, 1], True))
        for m in (model, pair[0])
    ]
    for ours, theirs in zip(*steps, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-4, rtol=0)


def broken(model, value):
    with torch.no_grad():
        model.blocks[1].ffn.fc1.weight[3, 5] = value
    return model


LARGE = DiverseVAR(sar=3.0, site="block", sides=(1, 2, 4, 6, 8, 12, 16), sar_alpha=1e30)
NOT_FINITE = {
    "a weight in the prompt": (float("nan"), None, (), "the prompt already contains them"),
    "NaN in a file or LoRA": (
        1,
        float("nan"),
        (),
        "weight 'blocks.1.ffn.fc1.weight' contains",
    ),
    "and SAR": (
        1,
        float("nan"),
        (DiverseVAR(sar=1.0),),
        "weight 'blocks.1.ffn.fc1.weight' contains",
    ),
    "a large LoRA": (
        1,
        3e38,
        (),
        "activations overflowed, or the LoRA contains NaN; lower cfg, raise tau",
    ),
    "SAR": (1, None, (LARGE,), "lower the strength of SSR and SAR"),
    "absolute SAR": (
        100,
        None,
        (DiverseVAR(sar=0.25, relative=False, site="block", sar_alpha=1e20),),
        "lower the strength of SSR and SAR",
    ),
}


def test_float16_that_ends_is_named(infinity_case):
    """Its products overflow, and SAR's eigenvalues are of infinity."""
    model = broken(load_model(infinity_case.model, dtype=torch.float16), 6e4)
    pair = model, load_vae(infinity_case.vae)
    with torch.no_grad():
        model.blocks[1].ffn.fc2.weight.fill_(6e4)
    for methods, sentence in (
        ([], "LoRA contains NaN; compute in bfloat16 or float32"),
        ([DiverseVAR(sar=0.5)], "lower the strength of SSR and SAR, or compute in bfloat16"),
    ):
        with pytest.raises(UserError, match=sentence):
            tokens(pair, prompts(4), 1, methods=methods)


@pytest.mark.parametrize("case", NOT_FINITE)
def test_what_is_not_finite_is_named(infinity_case, case):
    size, weight, methods, sentence = NOT_FINITE[case]
    pair = load_model(infinity_case.model), load_vae(infinity_case.vae)
    if weight is not None:
        broken(pair[0], weight)
    with pytest.raises(UserError, match=sentence):
        tokens(pair, [size * text for text in prompts(4, 6)], 1, methods=methods)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tau": (0.0,)}, "tau must be a number of 0.001 or more, not 0"),
        ({"cfg": (float("nan"),)}, "cfg must be a number of 0 or more, not nan"),
        ({"cfg": (1.0,) * 8}, "cfg has 8 values, but this image has 7 scales"),
        ({"cfg_layer": -4}, "the last block. must be a number from -3 to 0, not -4"),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1, not 1.5"),
        ({"more_smooth": True}, "more_smooth blends codebook rows"),
    ],
)
def test_impossible_settings_are_refused(pair, change, sentence):
    settings = Settings(**{**SETTINGS.__dict__, **change})
    with pytest.raises(UserError, match=sentence):
        tokens(pair, prompts(4), 0, settings)
