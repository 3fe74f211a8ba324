"""Every kind of file that holds a model, and every kind that does not."""

import json
import os
import pickle
import shutil
import time

import pytest
import torch
from cases import state_dict
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints import load_model, load_tokenizer
from diversevar_core.files import CheckpointError


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


def test_unknown_sides_say_what_is_needed(var_case, tmp_path):
    shutil.copy(var_case.model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"4 token maps of 30 tokens .*patch_nums"):
        load_model(tmp_path / "model.safetensors")


def test_released_tokenizer_nesting_and_short_names(infinity_case, tmp_path):
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
    same_weights(load_tokenizer(tmp_path / "vae.pth"), load_tokenizer(infinity_case.tokenizer))


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
    """What a malicious pickle would do when it is loaded."""

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
        "text.pth": "something other than tensors",
        "text.safetensors": "truncated or not a safetensors file",
        "cut.safetensors": "truncated",
        "cut.pth": "truncated",
        "flux.safetensors": "is a diffusion model, not a VAR or Infinity transformer",
        "lora.safetensors": "is a LoRA",
        "list.pth": "no named tensors",
        "code.pth": "code in it is never run",
        "zipped_code.pth": "code in it is never run",
        "no_blocks.safetensors": "lacks the tensor block",
        "no_head.safetensors": "lacks 1 of",
        "turned.safetensors": r"head.weight has shape \[.*\] where \[.*\] is needed",
        "more.safetensors": "has 1 tensors that no Infinity release has",
        "quantized.safetensors": "quantized .* ComfyUI only",
    }


def test_bad_files_are_refused_in_one_sentence(tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in bad_files(tmp_path, tensors).items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()


def test_transformer_and_tokenizer_are_told_apart(infinity_case):
    with pytest.raises(CheckpointError, match="is a VAR tokenizer, not a VAR or Infinity transf"):
        load_model(infinity_case.tokenizer)
    with pytest.raises(CheckpointError, match="is a VAR transformer, not VAR's or Infinity's tok"):
        load_tokenizer(infinity_case.model)


def test_more_blocks_than_any_model_has_are_refused_at_once(tensors, infinity_case, tmp_path):
    names = (f"block_chunks.0.module.{i}.x" for i in range(100, 20_100))
    tensors |= {name: torch.zeros(0) for name in names}
    save_file(tensors, tmp_path / "many.safetensors")
    shutil.copy(infinity_case.model.with_suffix(".json"), tmp_path / "many.json")
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"it has 20\d* blocks, and no model has more than"):
        load_model(tmp_path / "many.safetensors")
    assert time.monotonic() - began < 30
