"""Every way that the host keeps weights, without a card: what it loads, and what it samples."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from cases import write_case, write_text_encoder
from comfy_host import DYNAMIC, HOW_TO, ROOT, Host, find
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


QUANTIZED = {"emoji": "marks", "infinity": "old", "var": "header"}  # format of a file's scales


# how else trainers call the same layers: of which LoRA, what of its names, and what in its place
SPELLINGS = {
    "module": ("official", "diffusion_model.", "module."),
    "wrapped": ("official", "diffusion_model.", "base_model.model._orig_mod.module."),
    "compiled": ("official", "diffusion_model.", "transformer._orig_mod."),
    "lycoris": ("kohya", "lora_unet_", "lycoris_"),
    "lora_transformer": ("kohya", "lora_unet_", "lora_transformer_"),
}
LARGER = r"' was made for another model: for blocks\.0.*weight it has \[(\d+), 4\] and \[4, (\d+)\]"
# a broken LoRA -> words of the error
ODD = {
    "of a larger model": LARGER + r", and this model's is \[\d+, \d+\]; choose",
    "of two ranks": r"it has \[\d+, 3\] and \[4, \d+\], and this model's is",
    "of rank 0": r"is broken: '.*lora_[AB].weight' has shape \[\d+, 0\]",
    "of scalars": r"it has \[\] and \[\], and this model's is",
    "of nan": "lora_B.weight' contains NaN or infinity",
    "of inf": "lora_A.weight' contains NaN or infinity",
    "of one half": "lacks '.*lora_A.weight', half of a layer; it is broken",
    "of the other half": "has 1 tensors that cannot be used .*lora_A.weight'",
    "of a vector alpha": r"alpha' has shape \[3\]",
    "of a nan alpha": "alpha' contains NaN or infinity",
    "of peft's dora": "has 1 tensors that cannot be used .*lora_magnitude_vector'",
    "of saved modules": "has 1 tensors that cannot be used .*'head.weight'",
    "of a wrong difference": r"it has \[3, 3\], and this model's is",
    "of other hadamard factors": r"it has \[4, 4\] and .*, and this model's is",
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
        for path, folder in ((case.model, "diffusion_models"), (case.vae, "vae")):
            for file in (path, path.with_suffix(".json")):
                file.rename(models / folder / f"{family}{file.suffix}")
        files[family] = models / "diffusion_models" / f"{family}.safetensors"
    write_text_encoders(models / "text_encoders")
    write_loras(models, files["infinity"])
    write_wrong(models, files["infinity"])
    for family, file in files.items():
        plain, quantized, header = quantize(load_file(file), QUANTIZED[family])
        write(models, f"{family} dequantized", plain, file)
        write(models, f"{family} quantized", quantized, file, header)
        small = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}
        write(models, f"{family} in float8", small, file)
        write(models, f"{family} of float8", {name: t.float() for name, t in small.items()}, file)
    for family, file in files.items():
        for kind, dtype in TYPES.items():
            tensors = {
                name: (tensor.to(dtype) if is_matrix(name, tensor) else tensor).float()
                for name, tensor in load_file(file).items()
            }
            write(models, f"{family}_{kind}", tensors, file)


def write(models: Path, name: str, tensors: dict, like: Path, header: dict | None = None) -> None:
    """A transformer's file with the facts of another."""
    facts = like.with_suffix(".json")
    text = facts.read_text() if facts.exists() else json.dumps({"patch_nums": [1, 2, 4, 6, 8]})
    path = models / "diffusion_models" / f"{name}.safetensors"
    save_file(tensors, path, header)
    path.with_suffix(".json").write_text(text)


def quantize(tensors: dict, layout: str) -> tuple[dict, dict, dict | None]:
    """Scaled float8 by a plain rule: the values that it stands for, the file, its header."""
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    file, layers, mark = dict(plain), {}, {"format": "float8_e4m3fn"}
    for name, tensor in plain.items():
        if not is_matrix(name, tensor):
            continue
        scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        file[name] = (tensor / scale).to(torch.float8_e4m3fn)
        plain[name] = file[name].float() * scale
        layer = name.removesuffix(".weight")
        file[f"{layer}.{'scale_weight' if layout == 'old' else 'weight_scale'}"] = scale
        layers[layer] = mark
        if layout == "marks":
            words = json.dumps(mark).encode()
            file[f"{layer}.comfy_quant"] = torch.tensor(list(words), dtype=torch.uint8)
    if layout == "old":
        file["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    header = {"_quantization_metadata": json.dumps({"layers": layers})}
    return plain, file, header if layout == "header" else None


def write_text_encoders(folder: Path) -> None:
    """A tiny T5, and scaled float8 of it."""
    layouts = {"quantized": "marks", "scaled": "old", "headed": "header", "unmarked": "none"}
    for name in ("infinity", "t5 dequantized", *(f"t5 {name}" for name in layouts)):
        write_text_encoder(folder / name)
    tensors = load_file(folder / "infinity" / "model.safetensors")
    for name, layout in layouts.items():
        plain, file, header = quantize(tensors, layout)
        save_file(file, folder / f"t5 {name}" / "model.safetensors", header)
    save_file(plain, folder / "t5 dequantized" / "model.safetensors")


def write_loras(models: Path, model: Path) -> None:
    """A random LoRA in two layouts, and the weights that it makes at two strengths."""
    tensors, random = load_file(model), torch.Generator().manual_seed(0)
    official, kohya, merged = {}, {}, {0.5: dict(tensors), 0.75: dict(tensors)}
    for name, tensor in tensors.items():
        if not is_matrix(name, tensor):
            continue
        up, down = (0.3 * torch.randn(n, 4, generator=random) for n in tensor.shape)
        layer = name.removesuffix(".weight")
        peft = f"diffusion_model.{layer}"
        official |= {f"{peft}.lora_B.weight": up, f"{peft}.lora_A.weight": down.T.contiguous()}
        under = "lora_unet_" + layer.replace(".", "_")
        kohya |= {f"{under}.lora_up.weight": up, f"{under}.lora_down.weight": down.T.contiguous()}
        for strength, whole in merged.items():
            whole[name] = tensor + strength * (up @ down.T)
    save_odd_loras(models / "loras", official, kohya)
    save_peft_loras(models / "loras", official)
    save_file(official, models / "loras" / "official.safetensors")
    save_file(kohya, models / "loras" / "kohya.safetensors")
    write(models, "merged half", merged[0.5], model)
    write(models, "merged three quarters", merged[0.75], model)


def save_odd_loras(folder: Path, official: dict, kohya: dict) -> None:
    """The LoRA under other prefixes, and its first layer broken in every way."""
    for name, (like, before, after) in SPELLINGS.items():
        lora = official if like == "official" else kohya
        renamed = {key.replace(before, after, 1): tensor for key, tensor in lora.items()}
        save_file(renamed, folder / f"{name}.safetensors")
    lighter = {name: tensor / 2 for name, tensor in official.items()}
    save_file(lighter, folder / "lighter.safetensors")
    (folder / "module.json").write_text("[1]")  # a model's would be refused
    first = next(iter(official)).removesuffix(".lora_B.weight")
    up, down = (official[f"{first}.lora_{half}.weight"] for half in "BA")
    odd = {
        "of a larger model": (up.repeat(2, 1), down.repeat(1, 2)),
        "of two ranks": (up[:, :3].contiguous(), down),
        "of rank 0": (up[:, :0].contiguous(), down[:0].contiguous()),
        "of scalars": (up[0, 0].clone(), down[0, 0].clone()),
        "of nan": (up * torch.nan, down),
        "of inf": (up, down * torch.inf),
        "of one half": (up, None),
        "of the other half": (None, down),
        "of a vector alpha": (up, down),
        "of a nan alpha": (up, down),
        "of peft's dora": (up, down),
        "of saved modules": (up, down),
    }
    more = {
        "of a vector alpha": {"alpha": torch.ones(3)},
        "of a nan alpha": {"alpha": torch.tensor(torch.nan)},
        "of peft's dora": {"lora_magnitude_vector": torch.ones(len(up))},
        "of a wrong difference": {"diff": torch.zeros(3, 3)},
        "of other hadamard factors": {
            f"hada_w{i}_{half}": torch.ones(4, 4) for i in (1, 2) for half in "ab"
        },
    }
    assert set(ODD) == odd.keys() | more.keys()
    for name in ODD:
        halves = zip(("lora_B.weight", "lora_A.weight"), odd.get(name, (None, None)), strict=True)
        tensors = {half: tensor for half, tensor in halves if tensor is not None}
        tensors |= more.get(name, {})
        lora = official | {f"{first}.{part}": tensor for part, tensor in tensors.items()}
        for half in {"lora_B.weight", "lora_A.weight"} - tensors.keys():
            del lora[f"{first}.{half}"]
        if name == "of saved modules":
            lora["base_model.model.head.weight"] = torch.ones(2, 2)
        save_file(lora, folder / f"{name}.safetensors")


def save_peft_loras(folder: Path, official: dict) -> None:
    """The LoRA as PEFT saves it, each to be scaled by one: its config makes up for the numbers."""
    name = next(name for name in official if name.endswith("lora_A.weight"))
    first, rank = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"), 4
    configs = {
        "alpha": ({"lora_alpha": 16}, 4.0, 4.0),
        "rslora": ({"lora_alpha": 16, "use_rslora": True}, 8.0, 8.0),
        "pattern": ({"lora_alpha": 8, "alpha_pattern": {first: 1}}, 2.0, 0.25),
    }
    for kind, (config, scale, of_first) in configs.items():
        (folder / kind).mkdir()
        tensors = {
            key.replace("diffusion_model.", "base_model.model."): tensor
            / (1 if "lora_A" in key else of_first if f".{first}.lora" in key else scale)
            for key, tensor in official.items()
        }
        save_file(tensors, folder / kind / "adapter_model.safetensors")
        (folder / kind / "adapter_config.json").write_text(json.dumps({"r": rank} | config))


def write_wrong(models: Path, model: Path) -> None:
    """Files with a matrix turned, without one, and with one too many."""
    tensors = load_file(model)
    name = next(name for name in tensors if name.endswith("ffn.fc2.weight"))
    write(models, "transposed", tensors | {name: tensors[name].T.contiguous()}, model)
    write(models, "lacking", {n: tensor for n, tensor in tensors.items() if n != name}, model)
    _, marked, _ = quantize(tensors, "marks")
    del marked[name]
    write(models, "quantized and lacking", marked, model)
    write(models, "unknown", tensors | {"word_embed.more": torch.zeros(1)}, model)


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
        command, cwd=path, env=os.environ, capture_output=True, text=True, timeout=1800
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["plain", "dynamic"])
@pytest.mark.parametrize(
    "stored, plain", [("quantized", "dequantized"), ("in float8", "of float8")]
)
def test_quantized_files_and_files_of_float8_alone_give_their_values(
    report, family, mode, stored, plain
):
    found = report[f"{family} {stored} {mode}"]
    assert not isinstance(found, str), found
    assert torch.equal(found, report[f"{family} {plain}"])


@pytest.mark.parametrize("encoder", ["t5 quantized", "t5 scaled", "t5 headed"])
def test_scales_of_a_quantized_text_encoder_are_applied(report, encoder):
    torch.testing.assert_close(report[encoder], report["t5 dequantized"], atol=1e-5, rtol=0)
    assert not torch.equal(report["t5 dequantized"], report["t5 plain"])


def test_a_text_encoder_whose_scales_cannot_be_read_is_refused(report):
    assert "is quantized in a format that is not supported" in report["t5 unmarked"]


def test_a_text_encoder_reads_the_same_under_dynamic_vram(report):
    assert torch.equal(report["t5 dynamic"], report["t5 plain"])


def test_a_lora_is_the_merged_weights(report):
    assert "loras" not in report, report["loras"]
    for layout in ("official", "kohya", "streamed"):
        torch.testing.assert_close(report[f"lora {layout}"], report["merged half"])
    torch.testing.assert_close(report["lora both"], report["merged three quarters"])
    assert not torch.equal(report["merged half"], report["merged three quarters"])


def test_removing_a_lora_restores_the_weights(report):
    assert report["lora restores"]
    assert torch.equal(report["lora off"], report["infinity plain default"])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_is_read_under_every_trainers_names(report, spelling):
    found = report[f"lora {spelling}"]
    assert not isinstance(found, str), found
    assert torch.equal(found, report["lora official"])


@pytest.mark.parametrize("kind", ["alpha", "rslora", "pattern"])
def test_pefts_config_says_how_strong_its_lora_is(report, kind):
    found = report[f"lora {kind}/adapter_model"]
    assert not isinstance(found, str), found
    torch.testing.assert_close(found, report["lora official"])


@pytest.mark.parametrize("odd", ODD)
def test_a_broken_lora_is_refused_with_its_reason(report, odd):
    found = report[f"lora {odd}"]
    assert found.startswith("UserError: ") and f"{odd}.safetensors'" in found
    assert re.search(ODD[odd], found), found


def test_a_lora_has_a_finite_strength_and_a_listed_name(report):
    assert report["lora nan"] == "UserError: strength_model must be from -10.0 to 10.0, not nan."
    for name in ("", ".", "../vae/var.safetensors"):
        assert report[f"lora at {name}"].startswith("UserError: lora_name has no ")


def test_odd_images_are_measured_as_rgb_or_refused(report, kind):
    for channels in (1, 3, 4):
        assert not isinstance(found := report[f"{kind} {channels} channels"], str), found
    for odd in ("2 channels", "no images", "no pixels", "no batch"):
        words = r"UserError: images (is empty|takes IMAGE|has 2 channels).*"
        assert re.fullmatch(words, report[f"{kind} {odd}"])
    assert re.match("UserError: Image 1 of 2 cannot be compared", report[f"{kind} nan"])


def test_a_lora_stays_on_when_comparing_starts_takes_the_models_place(report):
    assert "evicted" not in report, report["evicted"]
    assert torch.equal(report["evicts True"], report["evicts False"])


def test_images_in_half_precision_are_edited_within_a_mask(report):
    assert "half_images" not in report, report["half_images"]
    whole, half = (report[f"edited in half {half}"] for half in (False, True))
    assert (whole - half).abs().mean() < 0.02
    assert not torch.equal(half[:, :32], half[:, 32:])


def test_a_lora_of_another_model_is_refused(report):
    words = report["lora of another model"]
    assert re.search(
        r"kohya.safetensors' has \d+ tensors that cannot be used with this model", words
    )


def test_a_compiled_model_draws_the_same_tokens_also_with_a_lora(report):
    assert report["graphs"] > 1 and not report["graph breaks"]
    assert not isinstance(report["compiled"], str), report["compiled"]
    assert torch.equal(report["compiled"], report["infinity plain default"])
    torch.testing.assert_close(report["compiled lora"], report["merged half"])


def test_where_torch_cannot_compile_the_loader_says_so(report):
    assert report["no compiler"].startswith("UserError: torch.compile does not work here (")
    assert report["no compiler"].endswith("; turn it off.")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_can_stay_on_another_device(report, family):
    found = report[f"{family} elsewhere"]
    assert not isinstance(found, str), found
    assert torch.equal(found, report[f"{family} plain default"])


def test_wrong_files_are_refused_by_layers_that_start_empty(report):
    assert report["made empty"]
    assert "where" in report["transposed"] and "fc2.weight' has shape" in report["transposed"]
    assert "lacks 1 of" in report["lacking"]
    assert "lacks 1 of" in report["quantized and lacking"]
    assert "has 1 tensors that no Infinity release has" in report["unknown"]


@pytest.mark.parametrize("mode", ["plain", "dynamic"])
def test_weights_stay_in_the_file_as_they_are(report, mode):
    assert report[f"mapped {mode}"]
    assert report[f"types {mode}"] == {torch.bfloat16}


def test_callbacks_run_around_sampling_and_after_a_cancel(report):
    assert report["cancelled"].startswith("InterruptProcessingException")
    assert report["callbacks"] == 2 * ["on_pre_run", "on_cleanup"]


def test_previews_have_the_images_shape_and_the_hosts_size(report):
    assert "runs" not in report, report["runs"]
    kinds, sizes, sides = zip(*report["previews"], strict=True)
    assert set(kinds) == {"JPEG"} and set(sides) == {300}
    assert sizes[-1][1] == 2 * sizes[-1][0]


def test_memory_is_requested_for_the_rows_and_keys_that_are_kept(report):
    unguided, guided, few_keys = report["room"]
    assert 2 * unguided == guided > few_keys > 0


def test_memory_is_requested_for_the_starts_that_are_drawn_at_once(report):
    two, sixteen, small, sixteen_at_once, one = report["room of starts"]
    assert two == small < sixteen_at_once == sixteen and one == two / 2


def test_memory_is_requested_for_what_blocks_added_to_the_last_map_before_pruning(report):
    whole, pruned = report["room of pruning"]
    rows, tokens, width, blocks = 2, 6 * 6, 256, 4
    assert pruned - whole == rows * tokens * width * blocks * torch.float32.itemsize


def test_memory_is_requested_for_the_image_that_travel_decodes(report):
    assert report["room of travel"] == report["room of decoding"] > max(report["room"])


def test_a_large_image_is_decoded_in_tiles_that_fit_where_the_whole_does_not(report):
    whole, tiled = report["decoded 1.0"], report["decoded 0.25"]
    assert not isinstance(tiled, str), tiled
    assert whole.shape == tiled.shape and (whole - tiled).abs().mean() < 0.05


def test_a_batch_is_computed_together_or_one_by_one(report):
    assert report["rows False"] == {6} and report["rows True"] == {2}
    for way in (False, True):
        assert torch.equal(report[f"batch {way}"][:1], report["infinity plain default"])


def test_the_host_can_load_a_copy(report):
    assert report["copy is another"]
    assert torch.equal(report["copy"], report["infinity plain default"])


def test_decoding_counts_more_memory_on_amd(report):
    assert report["amd"] == pytest.approx(2.73)


def test_a_workflow_gives_the_same_images_under_dynamic_vram(host, tmp_path):
    prompt = json.loads(
        (ROOT / "workflows" / "api" / "1 Text to image, works at once.json").read_text()
    )
    expected = host.run(prompt).images
    other = Host(*find(), tmp_path, DYNAMIC)
    found = other.run(prompt)
    other.stop()
    assert not re.search("IMPORT FAILED.*dynamic_vram", other.log) and not other.complaints()
    assert found.error is None and len(found.images) == len(expected) > 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found.images, expected, strict=True))


@pytest.mark.parametrize("kernel", ["basic", "sub_quad", "split", "pytorch"])
def test_the_hosts_attention_kernels_use_the_given_scale(report, kernel):
    q, k, v = report["q k v"]
    expected = (1.5 * q @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    torch.testing.assert_close(report[f"kernel {kernel}"], expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cards_types_and_kernels_make_much_the_same_image(report, family, compute):
    found = report[f"{family} in {compute}"]
    assert not isinstance(found, str), found
    assert (found == report[f"{family} plain default"]).float().mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["fp8_e4m3fn_fast", "quantized"])
def test_computing_in_fp8_makes_much_the_same_image(report, family, kind):
    found = report[f"{family} {kind} computed in fp8"]
    assert not isinstance(found, str), found
    exact = report[f"{family} {'dequantized' if kind == 'quantized' else 'rounded to fp8_e4m3fn'}"]
    both = torch.stack((found.flatten(), exact.flatten()))
    assert torch.corrcoef(both)[0, 1] > 0.5


def test_cancel_stops_between_maps_where_no_layer_checks_for_it(report):
    assert report["drawn after cancel"] == 1
