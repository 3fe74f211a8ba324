"""Every way that the host keeps weights, without a card: what it loads, and what it samples."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from cases import write_case, write_text_encoder
from comfy_host import HOW_TO, ROOT, find
from safetensors.torch import load_file, save_file

EMOJI = ROOT / "models" / "emoji" / "transformer.safetensors"
TYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
FAMILIES = ("emoji", "infinity", "var")
# how weights are kept -> the type that the blocks' matrices then have, None as in the file
WAYS = {
    "default": None,
    "fp32_unet": None,
    "bf16_unet": "bf16",
    "fp16_unet": "fp16",
    "fp8_e4m3fn_unet": "fp8_e4m3fn",
    "fp8_e5m2_unet": "fp8_e5m2",
    "fp8_e4m3fn": "fp8_e4m3fn",
    "fp8_e4m3fn_fast": "fp8_e4m3fn",
    "fp8_e5m2": "fp8_e5m2",
}


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is one of the blocks' matrices."""
    return "block" in name and name.endswith(".weight") and tensor.ndim == 2


def write_models(models: Path) -> None:
    """The tiny models under the names of their families, and what becomes of them in each type."""
    for folder in ("diffusion_models", "vae", "text_encoders", "loras"):
        (models / folder).mkdir(parents=True)
    files = {"emoji": EMOJI}
    for family in ("infinity", "var"):
        case = write_case(f"{family}_plain", models)
        for path, folder in ((case.model, "diffusion_models"), (case.tokenizer, "vae")):
            for file in (path, path.with_suffix(".json")):
                file.rename(models / folder / f"{family}{file.suffix}")
        files[family] = models / "diffusion_models" / f"{family}.safetensors"
    write_text_encoder(models / "text_encoders" / "infinity")
    for family, file in files.items():
        for kind, dtype in TYPES.items():
            tensors = {
                name: (tensor.to(dtype) if is_matrix(name, tensor) else tensor).float()
                for name, tensor in load_file(file).items()
            }
            write(models, f"{family}_{kind}", tensors, file)


def write(models: Path, name: str, tensors: dict, like: Path) -> None:
    """A transformer's file with the facts of another."""
    facts = like.with_suffix(".json")
    text = facts.read_text() if facts.exists() else json.dumps({"patch_nums": [1, 2, 4, 6, 8]})
    path = models / "diffusion_models" / f"{name}.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(text)


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> dict:
    found = find()
    if found is None:
        pytest.skip(HOW_TO)
    path, python = found
    models = tmp_path_factory.mktemp("loading") / "models"
    write_models(models)
    out = models.parent / "report.pt"
    command = [python, ROOT / "tests" / "in_host.py", path, ROOT, models, out]
    done = subprocess.run(
        command, cwd=path, env=os.environ, capture_output=True, text=True, timeout=600
    )
    assert out.exists(), done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["plain", "dynamic"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_the_same_weights_kept_plainly(report, family, mode, way):
    kind = WAYS[way]
    expected = report[f"{family} rounded to {kind}" if kind else f"{family} plain default"]
    found = report[f"{family} {mode} {way}"]
    assert not isinstance(found, str), found
    assert torch.equal(found, expected)
    assert found.isfinite().all() and found.std() > 0
