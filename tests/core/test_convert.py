"""Converted files make the same images, or an error says why they cannot be converted."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import arguments, state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from diversevar_core.checkpoints.files import CheckpointError
from diversevar_core.checkpoints.loading import compute_dtype, load_model, load_vae
from diversevar_core.convert import DTYPES, convert, read_whole, target
from diversevar_core.text.encoder import load_text_encoder

ROOT = Path(__file__).parents[2]
PROMPT = "a red apple on the moon"


def same(ours, theirs):
    """Two modules of equal sizes and weights."""
    assert ours.config == theirs.config
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def traced(trace, case, folder, *files) -> dict[str, torch.Tensor]:
    """Tokens and images of a case's first run."""
    out = ["--trace", folder / "trace.safetensors", "--out", folder / "image.png"]
    assert trace(*arguments(case, 0, folder), *out, *files).returncode == 0
    return load_file(folder / "trace.safetensors")


@pytest.mark.parametrize(
    "name", ["infinity_mixed", "infinity_patchify4", "infinity_plain", "var_plain", "var_shared"]
)
def test_images_stay_bit_for_bit(name, cases, trace, tmp_path):
    case, model, vae = cases[name], tmp_path / "m.safetensors", tmp_path / "v.safetensors"
    convert(case.model, model)
    convert(case.vae, vae)
    same(load_model(model), load_model(case.model))
    same(load_vae(vae), load_vae(case.vae))
    before = traced(trace, case, tmp_path)
    after = traced(trace, case, tmp_path, "--model", model, "--vae", vae)
    drawn = [name for name in before if not name.startswith("logits")]  # weights lie elsewhere
    assert all(torch.equal(before[name], after[name]) for name in drawn)


@pytest.fixture
def tensors(infinity_case):
    return state_dict(infinity_case.about["shapes"]["infinity"])


def sharded(folder: Path, tensors, suffix: str) -> Path:
    folder.mkdir()
    names, save = sorted(tensors), save_file if suffix == "safetensors" else torch.save
    halves = {f"part-1.{suffix}": names[::2], f"part-2.{suffix}": names[1::2]}
    for file, keys in halves.items():
        save({key: tensors[key] for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (folder / f"model.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def packagings(folder: Path, tensors) -> dict[str, Path]:
    """A transformer as a release, in the old format, from a trainer, and in shards."""
    useless = {
        "attn_bias_for_masking": torch.zeros(1, 1, 30, 30),
        "lvl_1L": torch.zeros(1, 30).int(),
    }
    torch.save(tensors | useless, folder / "release.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"args": {"depth": 4}, "trainer": {"gpt_fsdp": tensors}}, folder / "trainer.pth")
    return {
        "release": folder / "release.pth",
        "old": folder / "old.pth",
        "trainer": folder / "trainer.pth",
        "shards": sharded(folder / "shards", tensors, "safetensors"),
        "pickled shards": sharded(folder / "pickles", tensors, "bin"),
    }


def test_transformers_of_every_packaging(tensors, tmp_path, infinity_case):
    config = json.dumps(infinity_case.about["config"])
    for name, source in packagings(tmp_path, tensors).items():
        sidecar = source / "config.json" if source.is_dir() else source.with_suffix(".json")
        sidecar.write_text(config)
        convert(source, tmp_path / f"{name}.safetensors")
        same(load_model(tmp_path / f"{name}.safetensors"), load_model(infinity_case.model))
        kept = {key for key in tensors if not key.endswith("zero_k_bias")}
        assert load_file(tmp_path / f"{name}.safetensors").keys() == kept


def test_what_only_the_name_said_is_in_the_header(tensors, tmp_path):
    torch.save(tensors, tmp_path / "8B-512.pth")
    convert(tmp_path / "8B-512.pth", tmp_path / "mine.safetensors")
    with safe_open(tmp_path / "mine.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "pn": "0.25M", "task": "edit"}
    assert load_model(tmp_path / "mine.safetensors").config.pixels == "0.25M"


def test_facts_keep_their_types(tensors, tmp_path):
    facts = {
        "n": 3,
        "digits": "3",
        "list": [1, 2],
        "word": "null",
        "text": "as it is",
        "none": None,
    }
    torch.save(tensors, tmp_path / "m.pth")
    (tmp_path / "m.json").write_text(json.dumps(facts))
    convert(tmp_path / "m.pth", tmp_path / "out.safetensors")
    assert read_whole(tmp_path / "out.safetensors").facts == {"format": "pt"} | facts
    convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "out.safetensors"
    ).read_bytes()


def test_released_tokenizer(infinity_case, tmp_path):
    wanted = load_file(infinity_case.vae)
    extra = {"discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"vae": wanted | extra, "ema": {}, "step": 7}, tmp_path / "vae.pth")
    convert(tmp_path / "vae.pth", tmp_path / "vae.safetensors")
    same(load_vae(tmp_path / "vae.safetensors"), load_vae(infinity_case.vae))
    assert load_file(tmp_path / "vae.safetensors").keys() == {
        key for key in wanted if key.startswith(("encoder.", "decoder."))
    }


def test_whole_t5_becomes_an_encoder_with_its_tokenizer(text_encoder, tmp_path):
    config = T5Config.from_pretrained(text_encoder, num_decoder_layers=1)
    torch.manual_seed(0)
    whole = T5ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "t5", max_shard_size="400KB")
    shutil.copy(text_encoder / "tokenizer.json", tmp_path / "t5")
    assert len(list((tmp_path / "t5").glob("*.safetensors"))) > 1
    (tmp_path / "alone").mkdir()
    convert(tmp_path / "t5", tmp_path / "alone" / "t5.safetensors")
    want = load_text_encoder(tmp_path / "t5")([PROMPT])[0]
    assert torch.equal(load_text_encoder(tmp_path / "alone" / "t5.safetensors")([PROMPT])[0], want)
    assert not any("decoder" in key for key in load_file(tmp_path / "alone" / "t5.safetensors"))


def types(path: Path) -> dict[str, torch.dtype]:
    return {key: tensor.dtype for key, tensor in load_file(path).items()}


FP8, BF16, FP16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32
CHUNK, LAYER = "block_chunks.0.module.0", "encoder.block.0.layer"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{CHUNK}.sa.mat_qkv.weight", (BF16, FP16, FP8)),
        (f"{CHUNK}.ffn.fc1.weight", (BF16, FP16, FP8)),
        ("word_embed.weight", (BF16, FP16, BF16)),
        ("lvl_embed.weight", (BF16, FP16, BF16)),
        (f"{CHUNK}.ffn.fc1.bias", (FP32, FP32, FP32)),
        (f"{CHUNK}.sa.scale_mul_1H11", (FP32, FP32, FP32)),
        (f"{CHUNK}.ada_gss", (FP32, FP32, FP32)),
        ("text_norm.weight", (FP32, FP32, FP32)),
        ("shared_ada_lin.1.weight", (FP32, FP32, FP32)),
        ("head.weight", (FP32, FP32, FP32)),
    ],
)
def test_types_of_a_transformers_tensors(name, expected, tensors):
    assert tuple(target(name, tensors[name], dtype) for dtype in DTYPES.values()) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LAYER}.0.SelfAttention.q.weight", (BF16, FP16, FP8)),
        (f"{LAYER}.1.DenseReluDense.wi_0.weight", (BF16, FP16, FP8)),
        (f"{LAYER}.1.DenseReluDense.wo.weight", (BF16, FP32, FP8)),  # overflows in float16
        (f"{LAYER}.0.SelfAttention.relative_attention_bias.weight", (FP32, FP32, FP32)),
        (f"{LAYER}.0.layer_norm.weight", (FP32, FP32, FP32)),
        ("shared.weight", (BF16, FP16, BF16)),
    ],
)
def test_types_of_a_text_encoders_tensors(name, expected, text_encoder):
    tensor = load_file(text_encoder / "model.safetensors")[name]
    assert tuple(target(name, tensor, dtype) for dtype in DTYPES.values()) == expected


def test_types_of_a_tokenizers_tensors(var_case, infinity_case, tmp_path):
    for case in (var_case, infinity_case):
        out = tmp_path / f"{case.name}.safetensors"
        convert(case.vae, out, FP8)
        for name, dtype in types(out).items():
            exact = name.startswith("quantize.") or not name.endswith("weight") or "norm" in name
            assert dtype == (FP32 if exact else BF16), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_what_torch_makes_of_them(dtype, tensors, infinity_case, tmp_path):
    convert(infinity_case.model, tmp_path / "m.safetensors", DTYPES[dtype])
    found = load_file(tmp_path / "m.safetensors")
    for name, tensor in found.items():
        assert torch.equal(tensor.float(), tensors[name].to(tensor.dtype).float())
    model, plain = load_model(tmp_path / "m.safetensors"), load_model(infinity_case.model)
    assert model.config == plain.config
    size = (tmp_path / "m.safetensors").stat().st_size / infinity_case.model.stat().st_size
    assert size < {"bf16": 0.62, "fp16": 0.62, "fp8": 0.45}[dtype]
    on_a_card = {"bf16": BF16, "fp16": FP16, "fp8": BF16}[dtype]  # float8 is no type to compute in
    assert compute_dtype(found, "cuda") == on_a_card


def test_values_that_do_not_fit_are_refused(tensors, tmp_path):
    tensors[f"{CHUNK}.ffn.fc1.weight"][0, 0] = 500.0
    save_file(tensors, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "half.safetensors", FP16)
    with pytest.raises(CheckpointError, match="ffn.fc1.weight. has values beyond 448"):
        convert(tmp_path / "m.safetensors", tmp_path / "out.safetensors", FP8)
    assert {file.name for file in tmp_path.iterdir()} == {"m.safetensors", "half.safetensors"}


def test_command_line_converts(command_line, infinity_case, tmp_path):
    out = tmp_path / "m.safetensors"
    done = command_line("convert", infinity_case.model, "--out", out, "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert types(out)["word_embed.weight"] == BF16


def refusals(folder: Path, tensors) -> dict[str, tuple[Path, Path, str]]:
    """Source, destination, and the words of the error."""
    folder.mkdir()
    good, out = folder / "m.safetensors", folder / "out.safetensors"
    save_file(tensors, good)
    save_file({"lora_down.weight": torch.zeros(2, 2)}, folder / "lora.safetensors")
    scaled = {f"{CHUNK}.ffn.fc1.scale_weight": torch.ones(1)}
    save_file(tensors | scaled, folder / "scaled.safetensors")
    (folder / "link.safetensors").symlink_to("nowhere")
    return {
        "itself": (good, good, "There is a file"),
        "a file that is there": (good, folder / "lora.safetensors", "There is a file"),
        "a link that leads nowhere": (good, folder / "link.safetensors", "There is a file"),
        "a folder that is not there": (good, folder / "no" / "o.safetensors", "cannot be written"),
        "a LoRA": (folder / "lora.safetensors", out, "is a LoRA; what can be converted"),
        "a quantized file": (folder / "scaled.safetensors", out, "quantized already"),
        "a name too long": (good, folder / ("a" * 300 + ".safetensors"), "File name too long"),
        "below a file": (good, good / "a.safetensors", "cannot be written: Not a directory"),
        "nothing": (folder / "nowhere.pth", out, "There is no file"),
    }


def test_refusals_are_one_sentence_and_change_nothing(tensors, tmp_path):
    cases = refusals(tmp_path / "files", tensors)
    before = {file: file.lstat().st_mtime_ns for file in (tmp_path / "files").iterdir()}
    for source, out, words in cases.values():
        with pytest.raises(CheckpointError, match=words) as caught:
            convert(source, out)
        assert "\n" not in str(caught.value)
    after = {file: file.lstat().st_mtime_ns for file in (tmp_path / "files").iterdir()}
    assert before == after


def test_full_disk_leaves_nothing(infinity_case, tmp_path):
    size = infinity_case.model.stat().st_size // 2
    done = subprocess.run(
        [sys.executable, "-m", "diversevar_core", "convert", infinity_case.model]
        + ["--out", tmp_path / "m.safetensors"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode != 0
    assert "cannot be written: File too large" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [243, 255])
def test_longest_names_are_written(length, infinity_case, tmp_path):
    out = tmp_path / ("m" * (length - len(".safetensors")) + ".safetensors")
    convert(infinity_case.model, out)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


PEAK = """
import sys, threading, time
import torch
from diversevar_core.convert import convert
def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) // 1024
def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(.001)
torch.zeros(1).bfloat16()
peak = before = held()
threading.Thread(target=watch, daemon=True).start()
convert(*sys.argv[1:3], torch.bfloat16)
print(peak - before)
"""


def test_one_tensor_at_a_time_is_in_memory(tensors, tmp_path):
    """Ten of 16 MB each: far less than their 160 MB."""
    large = {f"{CHUNK}.{i}.weight": torch.zeros(2048, 2048) for i in range(10)}
    torch.save(tensors | large, tmp_path / "m.pth")
    command = [sys.executable, "-c", PEAK, tmp_path / "m.pth", tmp_path / "out.safetensors"]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50
