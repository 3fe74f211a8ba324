"""Against the original implementations: through the command line, to the token."""

import json

import numpy as np
import pytest
import torch
from cases import REFERENCE, arguments
from safetensors import safe_open
from safetensors.torch import load_file

from diversevar_core.checkpoints import load_tokenizer
from diversevar_core.schedule import infinity_schedule, square
from diversevar_core.tokenizers.autoencoder import to_image

TOLERANCE = 2e-4


def guided(case, i: int, k: int, rows: torch.Tensor) -> torch.Tensor:
    """What the head's rows become by guidance and temperature."""
    run = case.runs[i]
    if "labels" in case.about:
        t = run["cfg"] * k / (len(case.about["config"]["patch_nums"]) - 1)
        return (1 + t) * rows.chunk(2)[0] - t * rows.chunk(2)[1]
    at = lambda value: value[k] if isinstance(value, list) else value  # noqa: E731
    g, tau = at(run["cfg"]), at(run["tau"])
    if len(rows) == len(run["lens"]):
        return rows / tau
    return g * rows.chunk(2)[0] / tau + (1 - g) * rows.chunk(2)[1] / tau


RUNS = [
    (file.stem, i)
    for file in sorted(REFERENCE.glob("*.json"))
    for i in range(len(json.loads(file.read_text())["runs"]))
]


@pytest.mark.parametrize("name, i", RUNS)
def test_run_is_the_originals(cases, name, i, command_line, tmp_path):
    case = cases[name]
    traced, picture = tmp_path / "trace.safetensors", tmp_path / "picture.png"
    done = command_line(
        "sample", *arguments(case, i, tmp_path), "--trace", traced, "--out", picture
    )
    assert done.returncode == 0, done.stderr
    assert picture.exists()
    ours, theirs = load_file(traced), case.expected
    with safe_open(traced, "pt") as opened:
        assert "schedule" in opened.metadata()
    is_var = case.about["family"] == "var"
    kind = "tokens" if is_var else "bits"
    scales = sum(name.startswith(f"run{i}.{kind}.") for name in theirs)
    assert sum(name.startswith(f"{kind}.") for name in ours) == scales
    for k in range(scales):
        assert torch.equal(ours[f"{kind}.{k}"], theirs[f"run{i}.{kind}.{k}"].long())
        want = guided(case, i, k, theirs[f"run{i}.logits.{k}"])
        stride = max(ours[f"logits.{k}"].shape[1] // want.shape[1], 1)
        got = ours[f"logits.{k}"][:, ::stride][:, : want.shape[1]]
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours["f_hat"], theirs[f"run{i}.f_hat"], atol=TOLERANCE, rtol=0)
    stride = case.runs[i].get("image_stride", 1)
    image = ours["image"][..., ::stride, ::stride]
    if is_var:
        torch.testing.assert_close(image, theirs[f"run{i}.image"], atol=TOLERANCE, rtol=0)
    else:
        rgb = theirs[f"run{i}.image_bgr_uint8"].flip(-1).permute(0, 3, 1, 2)
        assert ((image * 255).int() - rgb.int()).abs().max() <= 1


def test_var_tokenizer_is_the_originals(var_case):
    tokenizer, expected = load_tokenizer(var_case.tokenizer), var_case.expected
    schedule = square(var_case.about["config"]["patch_nums"])
    check_encoding(tokenizer, schedule, expected["encode.pixels"], expected, "tokens")


def test_infinity_tokenizer_is_the_originals(infinity_case):
    tokenizer, expected = load_tokenizer(infinity_case.tokenizer), infinity_case.expected
    small = np.random.RandomState(7).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32)
    pixels = torch.nn.functional.interpolate(torch.from_numpy(small), (256, 256), mode="bilinear")
    schedule = infinity_schedule(1.0, "0.06M")
    check_encoding(tokenizer, schedule, pixels.clamp(-1, 1), expected, "bits")


def check_encoding(tokenizer, schedule, pixels, expected, kind):
    with torch.no_grad():
        maps, f_hat = tokenizer.quantize_maps(tokenizer.features(pixels), schedule), None
        for scale, tokens in zip(schedule, maps, strict=True):
            want = expected[f"encode.{kind}.{scale.k}"].long()
            assert torch.equal(tokens.reshape(want.shape), want)
            f_hat, _ = tokenizer.accumulate(f_hat, tokens, scale)
        image = to_image(tokenizer.decode(f_hat)) * 2 - 1
    want = expected["encode.reconstruction"]
    stride = image.shape[-1] // want.shape[-1]
    got = image[..., ::stride, ::stride].reshape(-1)
    torch.testing.assert_close(got, want.reshape(-1), atol=TOLERANCE, rtol=0)
