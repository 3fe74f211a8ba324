"""A running host with tiny models, and a browser, shared by all tests here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import REFERENCE, state_dict, write_case, write_text_encoder
from comfy_host import HOW_TO, ROOT, START_SECONDS, Host, chromium, find, opened
from safetensors.torch import load_file, save_file

QUIET = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
QUIET += " disable-component-update disable-sync"
# a CLIP vision model, as the host's loader knows the large ones only
OTHER_PACK = """
import torch
from comfy.clip_vision import ClipVisionModel

SIZES = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "patch_size": 16, "image_size": 64, "num_channels": 3}
SIZES |= {"hidden_act": "gelu", "model_type": "clip_vision_model"}


class TinyCLIPVision:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "make", "tests"

    def make(self):
        model, random = ClipVisionModel(SIZES), torch.Generator()
        weights = model.get_sd().items()
        model.load_sd({name: torch.randn(w.shape, generator=random) / 4 for name, w in weights})
        return (model,)


NODE_CLASS_MAPPINGS = {"TinyCLIPVision": TinyCLIPVision}
"""


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    found = find()
    if found is None:
        pytest.skip(HOW_TO)
    base = tmp_path_factory.mktemp("base")
    models = base / "models"
    for folder in ("checkpoints", "diffusion_models", "vae", "text_encoders"):
        (models / folder).mkdir(parents=True)
    write_infinity(models)
    write_var(models)
    write_edit(models)
    small = ROOT / "models" / "emoji-small"
    copy = models / "diffusion_models" / "emoji_copy.safetensors"
    shutil.copy(small / "transformer.safetensors", copy)
    checkpoint = models / "checkpoints" / "sd_xl_base_1.0.safetensors"  # as the template says
    shutil.copy(ROOT / "tests" / "flow.safetensors", checkpoint)
    # the text encoder of this diffusion model, which knows other prompts: without their list
    encoder = models / "text_encoders" / "emoji_unlisted"
    encoder.mkdir()
    save_file(load_file(small / "text_encoder.safetensors"), encoder / "model.safetensors")
    shutil.copy(small / "tokenizer.json", encoder)
    host = Host(*found, base, OTHER_PACK)
    yield host
    host.stop()
    assert not host.complaints(), "\n\n".join(host.complaints())


@pytest.fixture(scope="session")
def inside():
    """The host's code in this process."""
    import inside_host

    return inside_host


def write_infinity(models: Path) -> None:
    """The reference Infinity with a text encoder of its width, also with the releases' names."""
    case = write_case("infinity_plain", models)
    for path, folder in ((case.model, "diffusion_models"), (case.vae, "vae")):
        for file in (path, path.with_suffix(".json")):
            file.rename(models / folder / f"infinity_tiny{file.suffix}")
    whole = (models / "diffusion_models" / "infinity_tiny.safetensors").read_bytes()
    (models / "diffusion_models" / "truncated.safetensors").write_bytes(whole[:100_000])
    shapes, config = case.about["shapes"], case.about["config"]
    write_release(models / "diffusion_models" / "infinity_2b_reg.pth", shapes["infinity"], config)
    write_release(models / "vae" / "infinity_vae_d32reg.pth", shapes["vae"], config)
    encoder = write_text_encoder(models / "text_encoders" / "t5_tiny") / "model.safetensors"
    shutil.copy(encoder, models / "text_encoders" / "flan-t5-xl.safetensors")
    shutil.copy(encoder.with_name("tokenizer.json"), models / "text_encoders")


def write_var(models: Path) -> None:
    """The reference VAR with the releases' names, format, classes, and one more token map."""
    about = json.loads((REFERENCE / "var_plain.json").read_text())
    sides = [*about["config"]["patch_nums"], 6]
    about["config"] |= {"num_classes": 1000, "patch_nums": sides}
    transformer, vae = about["shapes"]["var"], about["shapes"]["vae"]
    transformer["class_emb.weight"][0] = 1001
    transformer["pos_1LC"][1] = sum(side**2 for side in sides)
    transformer["lvl_embed.weight"][0] = vae["quantize.ema_vocab_hit_SV"][0] = len(sides)
    write_release(models / "diffusion_models" / "var_d16.pth", transformer, about["config"])
    write_release(models / "vae" / "vae_ch160v4096z32.pth", vae, about["config"])


def write_edit(models: Path) -> None:
    """The reference VAREdit for infinity_tiny's vae, and one with the releases' names."""
    for name, file in (("varedit_plain", "edit_tiny.pth"), ("varedit_mixed", "8B-512.pth")):
        about = json.loads((REFERENCE / f"{name}.json").read_text())
        config, shapes = about["config"] | {"task": "edit"}, about["shapes"]
        write_release(models / "diffusion_models" / file, shapes["infinity"], config)
    vae = models / "vae" / "infinity_vae_d56_f8_14_patchify.pth"
    write_release(vae, shapes["vae"], config)


def write_release(path: Path, shapes: dict, config: dict) -> None:
    """Tiny weights in a release's file, with a sidecar for what the release's shapes would tell."""
    torch.save(state_dict(shapes), path)
    path.with_suffix(".json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the page is not tested: pip install playwright"
    )
    if chromium() is None:
        pytest.skip("the page is not tested: install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=chromium(),
            args=[f"--{option}" for option in QUIET.split()],
            timeout=1000 * START_SECONDS,
        )
        yield browser
        browser.close()


@pytest.fixture
def page(host, browser):
    """The host's page, for one test."""
    with opened(host, browser) as page:
        yield page
