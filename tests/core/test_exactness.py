"""Against the original implementations, to the token."""

import json

import numpy as np
import pytest
import torch
from cases import REFERENCE
from recorded import TOLERANCE, compare, margin_of, models_of, record_of

from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.schedule import infinity_schedule, square
from diversevar_core.vae.autoencoder import to_image

TIE = 1e-5  # the encoder's features are of size 1 and come from sums as ``TOLERANCE`` says


def test_a_token_may_turn_only_where_its_choice_was_close():
    noise, ours = torch.ones(1, 2, 3), torch.tensor([[0, 1]])
    logits = torch.tensor([[[1.0, 1.0 - 1e-4, 0.0], [0.0, 2.0, 1.0]]])
    assert margin_of(logits, noise, ours, ours, 0, 0.0) == 0
    assert margin_of(logits, noise, ours, torch.tensor([[1, 1]]), 0, 0.0) == TOLERANCE
    assert margin_of(logits, noise, ours, torch.tensor([[0, 2]]), 0, 0.0) == float("inf")


RUNS = [
    (file.stem, i)
    for file in sorted(REFERENCE.glob("*.json"))
    for i in range(len(json.loads(file.read_text())["runs"]))
]


@pytest.mark.parametrize("name, i", RUNS)
def test_run_is_the_originals(cases, name, i, tmp_path, record_property):
    models = models_of(cases[name], i, tmp_path)
    difference = compare(models, record_of(cases[name], i, models))
    record_property("near ties", difference.turned)
    assert difference.near, difference


def test_a_run_of_other_weights_is_not(cases, tmp_path):
    models = models_of(cases["var_plain"], 1, tmp_path)
    models.model.head.bias.data[7] += 0.1
    assert not compare(models, record_of(cases["var_plain"], 1, models)).near


def test_var_vae_is_the_originals(var_case):
    vae, expected = load_vae(var_case.vae), var_case.expected
    schedule = square(var_case.about["config"]["patch_nums"])
    check_encoding(vae, schedule, expected["encode.pixels"], expected, "tokens")


def test_infinity_vae_is_the_originals(infinity_case):
    vae, expected = load_vae(infinity_case.vae), infinity_case.expected
    small = np.random.RandomState(7).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    pixels = torch.nn.functional.interpolate(torch.from_numpy(small), (256, 256), mode="bilinear")
    schedule = infinity_schedule(1.0, "0.06M")
    check_encoding(vae, schedule, pixels.clamp(-1, 1), expected, "bits")


def check_encoding(vae, schedule, pixels, expected, kind):
    with torch.no_grad():
        features, f_hat = vae.features(pixels), None
        maps = vae.quantize_maps(features, schedule)
        moved = features + TIE * torch.randn(features.shape, generator=torch.manual_seed(0))
        assert all(map(torch.equal, maps, vae.quantize_maps(moved, schedule)))
        for scale, tokens in zip(schedule, maps, strict=True):
            want = expected[f"encode.{kind}.{scale.k}"].long()  # nothing here is near a tie
            assert torch.equal(tokens.reshape(want.shape), want)
            f_hat, _ = vae.accumulate(f_hat, tokens, scale)
        image = to_image(vae.decode(f_hat)) * 2 - 1
    want = expected["encode.reconstruction"]
    stride = image.shape[-1] // want.shape[-1]
    got = image[..., ::stride, ::stride].reshape(-1)
    torch.testing.assert_close(got, want.reshape(-1), atol=TOLERANCE, rtol=0)
