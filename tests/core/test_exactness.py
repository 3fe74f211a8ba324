"""Against the original implementations: through ``tests.trace``, to the token.

Sums round as a CPU's instructions order them, so logits are compared with a tolerance, and what
follows from them with what it makes of theirs: a token may turn only where its choice was that
close (``check_drawn``), and ``more_smooth`` magnifies differences as far as it sharpens
(``sharpened``). Every map comes after the originals' tokens, so that one that turned does not hide
what comes after it.
"""

import json

import numpy as np
import pytest
import torch
from cases import REFERENCE, arguments
from safetensors import safe_open
from safetensors.torch import load_file

from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.sampling.random import pick, truncate
from diversevar_core.schedule import infinity_schedule, square
from diversevar_core.vae.autoencoder import to_image

TIE = 1e-5  # the encoder's features are of size 1 and come from sums as below
# Of logits, features, images. A logit is the end of about 30 chained float32 sums of up to 1024
# terms; each is off by about sqrt(1024) * 2**-24 = 2e-6 of its terms' size, together by 1e-5 times
# what guidance (up to 7) and temperature (0.1 to 1) make of it. Found: 2e-6 to 7e-5.
TOLERANCE = 2e-4


def guided(case, i: int, k: int, rows: torch.Tensor) -> torch.Tensor:
    """The head's logits after guidance and temperature."""
    run = case.runs[i]
    if "labels" in case.about:
        t = run["cfg"] * k / (len(case.about["config"]["patch_nums"]) - 1)
        return (1 + t) * rows.chunk(2)[0] - t * rows.chunk(2)[1]
    at = lambda value: value[k] if isinstance(value, list) else value  # noqa: E731
    g, tau = at(run["cfg"]), at(run["tau"])
    if len(rows) == len(run["lens"]):
        return rows / tau
    return g * rows.chunk(2)[0] / tau + (1 - g) * rows.chunk(2)[1] / tau


def check_drawn(ours, theirs, logits, noise, top_k: int, top_p: float) -> int:
    """How many tokens or bits (B, ...) are not theirs. Each of them was a near tie.

    logits: ours, (B, ..., choices); noise: the random numbers. A tie, in the noise itself or at the
    edge of what top_k and top_p keep, is near where theirs wins once logits move by ``TOLERANCE``.
    """
    turned = ours != theirs
    nudge = torch.zeros_like(logits).scatter_(-1, ours.unsqueeze(-1), -TOLERANCE)
    nudge.scatter_(-1, theirs.unsqueeze(-1), TOLERANCE)
    nudged = pick(truncate(logits + nudge, top_k, top_p), noise)
    assert torch.equal(nudged[turned], theirs[turned])
    return turned.sum().item()


def test_a_token_may_turn_only_where_its_choice_was_close():
    noise, token = torch.ones(1, 2, 3), torch.tensor([[0, 1]])
    logits = torch.tensor([[[1.0, 1.0 - 1e-4, 0.0], [0.0, 2.0, 1.0]]])
    assert check_drawn(token, token, logits, noise, 0, 0.0) == 0
    assert check_drawn(token, torch.tensor([[1, 1]]), logits, noise, 0, 0.0) == 1
    with pytest.raises(AssertionError):
        check_drawn(token, torch.tensor([[0, 2]]), logits, noise, 0, 0.0)


def sharpened(case, errors: list[float]) -> float:
    """How far f_hat of ``more_smooth`` may be off where the maps' logits are off by so much.

    The mixture is a softmax of ((1 + t) logits + noise) / tau, t the progress and tau 0.27 to
    0.0135. Arguments that are off by e move weights by e in all, and so a map's rows by e times the
    codebook's largest number; at the last map (1 + t) / tau is 148.
    """
    largest = load_file(case.vae)["quantize.embedding.weight"].abs().max().item()
    times = [k / (len(errors) - 1) for k in range(len(errors))]
    gains = [(1 + t) / (0.27 * (1 - 0.95 * t)) for t in times]
    return largest * sum(gain * error for gain, error in zip(gains, errors, strict=True))


RUNS = [
    (file.stem, i)
    for file in sorted(REFERENCE.glob("*.json"))
    for i in range(len(json.loads(file.read_text())["runs"]))
]


@pytest.mark.parametrize("name, i", RUNS)
def test_run_is_the_originals(cases, name, i, trace, tmp_path, record_property):
    case = cases[name]
    traced, image = tmp_path / "trace.safetensors", tmp_path / "image.png"
    done = trace(*arguments(case, i, tmp_path), "--trace", traced, "--out", image)
    assert done.returncode == 0, done.stderr
    assert image.exists()
    ours, theirs = load_file(traced), case.expected
    with safe_open(traced, "pt") as opened:
        assert "schedule" in opened.metadata()
    is_var, run = case.about["family"] == "var", case.runs[i]
    kind, choices = ("tokens", case.about["config"]["V"]) if is_var else ("bits", 2)
    generator = torch.Generator().manual_seed(run.get("seed", run.get("g_seed")))
    scales = sum(name.startswith(f"run{i}.{kind}.") for name in theirs)
    assert sum(name.startswith(f"{kind}.") for name in ours) == scales
    errors, ties, count = [], 0, 0
    for k in range(scales):
        logits, want = ours[f"logits.{k}"], guided(case, i, k, theirs[f"run{i}.logits.{k}"])
        stride = max(logits.shape[1] // want.shape[1], 1)
        got = logits[:, ::stride][:, : want.shape[1]]
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
        errors.append((got - want).abs().max().item())
        drawn = ours[f"{kind}.{k}"], theirs[f"run{i}.{kind}.{k}"].long()
        each = logits if is_var else logits.unflatten(-1, (-1, choices))
        noise = torch.empty(each.shape).exponential_(generator=generator)
        ties += check_drawn(*drawn, each, noise, run.get("top_k", 0), run.get("top_p", 0))
        count += drawn[0].numel()
        if run.get("more_smooth"):
            torch.empty(each.shape).exponential_(generator=generator)  # the mixture's noise
    record_property("near ties", ties)
    # a choice is one with a chance of less than the width of both tolerances
    assert ties <= 1 + 2 * TOLERANCE * count
    allowed = TOLERANCE + (sharpened(case, errors) if run.get("more_smooth") else 0)
    torch.testing.assert_close(ours["f_hat"], theirs[f"run{i}.f_hat"], atol=allowed, rtol=0)
    stride = run.get("image_stride", 1)
    image = ours["image"][..., ::stride, ::stride]
    if is_var:  # 0..1, to which the decoder carries less than what f_hat is off by
        torch.testing.assert_close(image, theirs[f"run{i}.image"], atol=allowed, rtol=0)
    else:
        rgb = theirs[f"run{i}.image_bgr_uint8"].flip(-1).permute(0, 3, 1, 2)
        assert ((image * 255).int() - rgb.int()).abs().max() <= 1


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
