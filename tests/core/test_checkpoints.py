"""Loading every format of model files, and refusing others."""

import json
import os
import pickle
import shutil
import time

import pytest
import torch
from cases import state_dict
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints.files import CheckpointError
from diversevar_core.checkpoints.loading import build_model, load_model, load_vae, read_model
from diversevar_core.text.encoder import load_text_encoder


def same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def tensors(infinity_case):
    return state_dict(infinity_case.about["shapes"]["infinity"])


@pytest.fixture
def plain(infinity_case):
    return load_model(infinity_case.model)


def test_pickle(tensors, plain, tmp_path):
    torch.save(tensors, tmp_path / "model.pth")
    same_weights(load_model(tmp_path / "model.pth"), plain)


def test_old_pickle_format(tensors, plain, tmp_path):
    torch.save(tensors, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    same_weights(load_model(tmp_path / "model.pth"), plain)


def test_trainers_checkpoint(tensors, plain, tmp_path):
    nested = {"args": {"depth": 4}, "trainer": {"opt": {"lr": 0.1}, "gpt_fsdp": tensors}}
    torch.save(nested, tmp_path / "ar-ckpt.pth")
    same_weights(load_model(tmp_path / "ar-ckpt.pth"), plain)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(tensors, plain, tmp_path, suffix):
    names = sorted(tensors)
    halves = {f"part-1.{suffix}": names[::2], f"part-2.{suffix}": names[1::2]}
    for file, keys in halves.items():
        part = {key: tensors[key] for key in keys}
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (tmp_path / f"model.{suffix}.index.json").write_text(json.dumps(index))
    same_weights(load_model(tmp_path), plain)


def test_facts_in_the_header(var_case, tmp_path):
    header = {"patch_nums": "[1, 2, 3, 4]"}
    save_file(load_file(var_case.model), tmp_path / "model.safetensors", header)
    assert load_model(tmp_path / "model.safetensors").config.sides == (1, 2, 3, 4)


def test_a_caller_may_read_the_tensors_itself(var_case, tmp_path):
    """As ComfyUI does, to stream them to a card; facts and packaging are still ours to read."""
    tensors = {f"model.{name}": tensor for name, tensor in load_file(var_case.model).items()}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {"patch_nums": "[1, 2, 3, 4]"})
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    model = build_model(read_model(path, load=lambda file: copies), path)
    same_weights(model, load_model(var_case.model))
    weight = copies["model.word_embed.weight"]
    assert model.word_embed.weight.data_ptr() == weight.data_ptr()


def test_unknown_sides_say_what_is_needed(var_case, tmp_path):
    shutil.copy(var_case.model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"4 token maps of 30 tokens .*patch_nums"):
        load_model(tmp_path / "model.safetensors")


def test_released_vae_nesting_and_short_names(infinity_case, tmp_path):
    long = state_dict(infinity_case.about["shapes"]["vae"])
    short = {
        key.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias").replace(
            ".norm.weight", ".weight"
        ).replace(".norm.bias", ".bias").replace("sample.weight", "sample.conv.weight").replace(
            "sample.bias", "sample.conv.bias"
        ): value
        for key, value in long.items()
    }  # fmt: skip
    assert not set(short) & {key for key in long if "conv1" in key}
    extra = {"discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"vae": short | extra, "ema": {}, "step": 7}, tmp_path / "vae.pth")
    same_weights(load_vae(tmp_path / "vae.pth"), load_vae(infinity_case.vae))


def test_half_precision_file_computes_in_float32_on_a_cpu(tensors, tmp_path):
    save_file({key: value.bfloat16() for key, value in tensors.items()}, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_float32_file_is_not_copied(infinity_case):
    model = load_model(infinity_case.model)
    with open("/proc/self/maps") as maps:  # a mapped file shows among the process's mappings
        assert str(infinity_case.model) in maps.read()
    assert model.word_embed.weight.dtype == torch.float32


def test_float8_weights_without_scales_compute_in_float32_on_a_cpu(tensors, plain, tmp_path):
    eighths = {key: value.to(torch.float8_e5m2) for key, value in tensors.items()}
    save_file(eighths, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert model.dtype == torch.float32
    expected = plain.head.weight.to(torch.float8_e5m2).float()
    assert torch.equal(model.head.weight, expected)


class Code:
    """Code that a malicious pickle would run when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def bad_files(folder, tensors):
    """File -> the words that the error must have."""
    (folder / "text.pth").write_text("not a checkpoint")
    (folder / "text.safetensors").write_text("not a checkpoint")
    save_file(tensors, folder / "cut.safetensors")
    torch.save(tensors, folder / "cut.pth")
    for name in ("cut.safetensors", "cut.pth"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(2)}, folder / "flux.safetensors")
    save_file({"lora_unet_down.weight": torch.zeros(2)}, folder / "lora.safetensors")
    torch.save([1, 2, 3], folder / "list.pth")
    with open(folder / "code.pth", "wb") as file:
        pickle.dump({"word_embed.weight": Code()}, file)
    torch.save({"word_embed.weight": Code()}, folder / "zipped_code.pth")
    save_file(
        {key: value for key, value in tensors.items() if "block_chunks" not in key},
        folder / "no_blocks.safetensors",
    )
    save_file(
        {key: value for key, value in tensors.items() if key != "head.bias"},
        folder / "no_head.safetensors",
    )
    turned = {"head.weight": tensors["head.weight"].T.contiguous()}
    save_file(tensors | turned, folder / "turned.safetensors")
    save_file(tensors | {"head.more": torch.zeros(2)}, folder / "more.safetensors")
    scale = {"head.weight_scale": torch.ones(())}
    save_file(tensors | scale, folder / "quantized.safetensors")
    return {
        "nowhere.pth": "There is no file",
        "text.pth": "holds something other than tensors",
        "text.safetensors": "truncated or not a checkpoint",
        "cut.safetensors": "truncated",
        "cut.pth": "truncated",
        "flux.safetensors": "is a diffusion model, not a VAR or Infinity transformer",
        "lora.safetensors": "is a LoRA",
        "list.pth": "truncated or not a checkpoint",
        "code.pth": "code in it is never run",
        "zipped_code.pth": "code in it is never run",
        "no_blocks.safetensors": "lacks the tensor .block",
        "no_head.safetensors": "lacks 1 of",
        "turned.safetensors": r"head.weight. has shape \[.*\] where \[.*\] is needed",
        "more.safetensors": "has 1 tensors that no Infinity release has",
        "quantized.safetensors": "quantized .* only ComfyUI",
    }


def test_bad_files_are_refused_in_one_sentence(tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in bad_files(tmp_path, tensors).items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()


def test_transformer_and_vae_are_told_apart(infinity_case):
    with pytest.raises(CheckpointError, match="is a VAR VAE, not a VAR or Infinity transf"):
        load_model(infinity_case.vae)
    with pytest.raises(CheckpointError, match="is a VAR transformer, not VAR's or Infinity's VAE"):
        load_vae(infinity_case.model)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_models_load(prefix, infinity_case, var_case, tmp_path):
    for case, kind in ((infinity_case, "model"), (var_case, "model"), (var_case, "vae")):
        source, file = getattr(case, kind), tmp_path / "m.safetensors"
        save_file({prefix + key: value for key, value in load_file(source).items()}, file)
        shutil.copy(source.with_suffix(".json"), file.with_suffix(".json"))
        load = load_model if kind == "model" else load_vae
        same_weights(load(file), load(source))


LINES = [
    [1, 100_000],
    [1, -2, 3, 4],
    [1.0, 2.0, 3.0, 4.0],
    [True, 2, 3, 4],
    [2, 3, 4],
    [1, 3, 2],
    "1_2_3_4",
    {"1": 2},
    5,
    [],
    [[1]],
    [10**400],
    [1, *range(1, 300)],
]


@pytest.mark.parametrize("sides", LINES)
@pytest.mark.parametrize("where", ["header", "sidecar"])
def test_impossible_sides_are_refused_at_load(sides, where, infinity_case, var_case, tmp_path):
    text = json.dumps(sides)
    for case in (infinity_case, var_case):
        file = tmp_path / "m.safetensors"
        save_file(load_file(case.model), file, {"patch_nums": text} if where == "header" else None)
        if where == "sidecar":
            file.with_suffix(".json").write_text(json.dumps({"patch_nums": sides}))
        with pytest.raises(CheckpointError, match="cannot be read: patch_nums") as caught:
            load_model(file)
        assert len(str(caught.value)) < 800


def test_more_maps_than_levels_are_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors", {"patch_nums": str(list(range(1, 17)))})
    with pytest.raises(
        CheckpointError, match="the number of patch_nums must be .* from 1 to 15, not 16"
    ):
        load_model(tmp_path / "m.safetensors")


ODD = {
    "text_norm.weight": torch.ones(4),
    "word_embed.weight": torch.ones(64),
    "cfg_uncond": torch.ones(0, 256),
    "block_chunks.0.module.0.sa.scale_mul_1H11": torch.ones(1, 7, 1, 1),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_are_refused_at_load(name, tensors, tmp_path):
    save_file(tensors | {name: ODD[name]}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"has shape|among \d heads"):
        load_model(tmp_path / "m.safetensors")


def plain_blocks(tensors):
    """The first block's tensors, and all that are in no block."""
    first = "block_chunks.0.module.0."
    block = {k.removeprefix(first): v for k, v in tensors.items() if k.startswith(first)}
    return block, {k: v for k, v in tensors.items() if not k.startswith("block_chunks")}


@pytest.mark.parametrize("kind", ["empty", "small", "one tensor", "gap", "text encoder"])
def test_many_missing_blocks_are_refused_quickly(kind, tensors, text_encoder, tmp_path):
    block, rest = plain_blocks(tensors)
    changed = {
        "empty": {key: torch.zeros(0) for key in block},
        "small": {key: torch.zeros((1,) * value.ndim) for key, value in block.items()},
        "one tensor": {"sa.scale_mul_1H11": block["sa.scale_mul_1H11"]},
        "gap": {"sa.scale_mul_1H11": block["sa.scale_mul_1H11"]},
        "text encoder": {"layer.0.SelfAttention.q.weight": torch.zeros(1)},
    }[kind]
    start = "blocks."
    if kind == "text encoder":
        rest = load_file(text_encoder / "model.safetensors")
        start, block = "encoder.block.", {}
        shutil.copy(text_encoder / "tokenizer.json", tmp_path)
    many = {f"{start}{i}.{key}": value for i in range(2, 4000) for key, value in changed.items()}
    many |= {f"{start}{i}.{key}": value for i in range(2) for key, value in block.items()}
    if kind == "gap":
        del many["blocks.3.sa.scale_mul_1H11"]
    torch.save(many | rest, tmp_path / "m.pth")
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"number of blocks must be .* to 200, not \d+"):
        (load_text_encoder if kind == "text encoder" else load_model)(tmp_path / "m.pth")
    assert time.process_time() - started < 10


def test_a_models_own_guidance_and_temperature_are_its_official_ones(infinity_case, tmp_path):
    """Of a model with its own maps: as if these numbers were asked for."""
    file, tensors = tmp_path / "m.safetensors", load_file(infinity_case.model)
    sides, cfg, tau = [1, 2, 4], [3, 2.5, 1], [0.5, 0.5, 0.1]
    facts = {"patch_nums": sides, "cfg_list": cfg, "tau_list": tau}
    save_file(tensors, file, {name: json.dumps(fact) for name, fact in facts.items()})
    settings = load_model(file).defaults()
    assert settings.cfg == (3.0, 2.5, 1.0)
    assert settings.tau == (0.5, 0.5, 0.1)


@pytest.mark.parametrize(("name", "least"), [("cfg_list", "0"), ("tau_list", "0.001")])
@pytest.mark.parametrize(
    "values", [[4, 1], 4, "4", [4, 1, None], [4, 1, -1], [4, 1, float("nan")], [4, 1, 101]]
)
def test_an_impossible_guidance_or_temperature_is_refused_at_load(
    values, name, least, infinity_case, tmp_path
):
    file, tensors = tmp_path / "m.safetensors", load_file(infinity_case.model)
    save_file(tensors, file, {"patch_nums": "[1, 2, 4]", name: json.dumps(values)})
    with pytest.raises(CheckpointError, match=f"{name} must be a number from {least} to 100 for"):
        load_model(file)
