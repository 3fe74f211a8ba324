"""Checkpoints as the official trainers, and those who repack them, write them."""

import io
import json
import zipfile
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import state_dict
from safetensors.torch import load_file, save_file

from diversevar_core.checkpoints.files import CheckpointError, names_in
from diversevar_core.checkpoints.loading import is_model, is_vae, load_model, load_vae
from diversevar_core.conditions import Labels, Text
from diversevar_core.convert import convert
from diversevar_core.sampling.sampler import sample


def infinity_checkpoint(case) -> dict:
    """``CKPTSaver.sav`` of Infinity's trainer; ``last_wei_g`` is a median that numpy computed."""
    config = case.about["config"]
    args = OrderedDict(
        pn=config["pn"],
        rope2d_normalized_by_hw=config.get("rope2d_normalized_by_hw", 2),
        add_lvl_embeding_only_first_block=config["add_lvl_embeding_only_first_block"],
        local_out_path="local_output",
        tf32=True,
        ckpt_trials=[],
        scale_schedule=None,
        last_wei_g=np.median([0.73]),
        steps=np.int64(7),
        half=np.float32(0.5),
    )
    model = state_dict(case.about["shapes"]["infinity"])
    moments = {name: {"step": torch.tensor(3.0), "exp_avg": t * 0} for name, t in model.items()}
    trainer = {
        "config": {"dynamic_resolution_h_w": {1.0: {"0.06M": {"scales": [(1, 1, 1)]}}}},
        "vae_local": OrderedDict(state_dict(case.about["shapes"]["vae"])),
        "gpt_fsdp": OrderedDict(model),
        "gpt_ema_fsdp": {name: tensor * 0.5 for name, tensor in model.items()},
        "gpt_fsdp_opt": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(model)}]},
    }
    about = {"gpt_training": True, "arch": "2bc8", "epoch": 3, "iter": 756, "milestones": None}
    return {"args": args, **about, "trainer": trainer, "acc_str": "[todo]"}


def var_checkpoint(case) -> dict:
    """What VAR's ``train.py`` saves."""
    sides = tuple(case.about["config"]["patch_nums"])
    args = OrderedDict(
        depth=2, pn="_".join(map(str, sides)), patch_nums=sides, grad=np.float64(0.2)
    )
    trainer = {
        "config": {"patch_nums": sides, "prog_it": 0},
        "var_wo_ddp": OrderedDict(state_dict(case.about["shapes"]["var"])),
        "vae_local": OrderedDict(state_dict(case.about["shapes"]["vae"])),
        "var_opt": {"optimizer": {"state": {}, "param_groups": []}},
    }
    return {"epoch": 9, "iter": 0, "trainer": trainer, "args": args}


def as_numpy_1(path: Path) -> None:
    """Rewrite a checkpoint with the names that numpy's modules had before version 2."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content.replace(b"numpy._core.", b"numpy.core."))


def f_hat(model: Path, vae: Path) -> torch.Tensor:
    """What two files draw with the model's own schedule and settings."""
    model, vae = load_model(model), load_vae(vae)
    condition = Labels(torch.tensor([3]))
    if model.reads is Text:
        random = torch.Generator().manual_seed(0)
        condition = Text([torch.randn(5, model.config.text, generator=random)])
    *_, last = sample(model, vae, condition, model.schedule(), model.defaults(), [1])
    return last.f_hat


@pytest.fixture(params=["infinity_mixed", "infinity_plain", "var_plain"])
def case(request, cases):
    return cases[request.param]


def written(case, folder: Path) -> Path:
    """A trainer's checkpoint of a case."""
    checkpoint = infinity_checkpoint if case.about["family"] == "infinity" else var_checkpoint
    path = folder / "ar-ckpt-giter004K-ep3-iter756-last.pth"
    torch.save(checkpoint(case), path)
    return path


@pytest.mark.parametrize("numpy", [1, 2])
def test_a_trainers_checkpoint_is_drawn_and_converted_alone(case, numpy, tmp_path):
    """Its own arguments say what a sidecar says of the released file."""
    path, plain = written(case, tmp_path), load_model(case.model)
    if numpy == 1:
        as_numpy_1(path)
    assert is_model(names_in(path)) and is_vae(names_in(path))
    assert asdict(load_model(path).config) == asdict(plain.config)
    expected = f_hat(case.model, case.vae)
    assert torch.equal(f_hat(path, path), expected)
    convert(path, tmp_path / "m.safetensors")
    assert torch.equal(f_hat(tmp_path / "m.safetensors", path), expected)


def test_the_sidecar_is_believed_before_the_trainers_arguments(infinity_case, tmp_path):
    path = written(infinity_case, tmp_path)
    path.with_suffix(".json").write_text('{"pn": "0.60M"}')
    assert load_model(path).config.pixels == "0.60M"


@pytest.mark.parametrize("odd", [np.zeros(3), np.dtype("V8"), np.str_("a"), np.datetime64(0, "s")])
def test_nothing_else_of_numpy_is_read(odd, infinity_case, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(infinity_checkpoint(infinity_case) | {"odd": odd}, path)
    with pytest.raises(CheckpointError, match="something other than tensors"):
        load_model(path)


PREFIXES = ["model.", "gpt.", "var.", "transformer.", "diffusion_model.", "model.diffusion_model."]
PREFIXES += ["_fsdp_wrapped_module.", "module.model._orig_mod.", "vae.", "first_stage_model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_repackers_prefixes_are_stripped(prefix, var_case, tmp_path):
    for source, load, accepts in (
        (var_case.model, load_model, is_model),
        (var_case.vae, load_vae, is_vae),
    ):
        path = tmp_path / "m.safetensors"
        save_file({prefix + name: tensor for name, tensor in load_file(source).items()}, path)
        path.with_suffix(".json").write_text(source.with_suffix(".json").read_text())
        assert accepts(names_in(path))
        same(load(path), load(source))


def test_both_models_in_one_lightning_file(var_case, tmp_path):
    """``state_dict`` with ``var.*`` beside ``vae.*``."""
    both = {f"var.{name}": tensor for name, tensor in load_file(var_case.model).items()}
    both |= {f"vae.{name}": tensor for name, tensor in load_file(var_case.vae).items()}
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 1, "state_dict": both, "hyper_parameters": {"lr": 1e-4}}, path)
    path.with_suffix(".json").write_text(var_case.model.with_suffix(".json").read_text())
    assert is_model(names_in(path)) and is_vae(names_in(path))
    same(load_model(path), load_model(var_case.model))
    same(load_vae(path), load_vae(var_case.vae))


def test_shards_with_a_prefix(var_case, tmp_path):
    tensors = {f"model.{name}": tensor for name, tensor in load_file(var_case.model).items()}
    names = sorted(tensors)
    for i in (0, 1):
        part = {name: tensors[name] for name in names[i::2]}
        save_file(part, tmp_path / f"model-0000{i + 1}-of-00002.safetensors")
    index = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(var_case.model.with_suffix(".json").read_text())
    same(load_model(tmp_path), load_model(var_case.model))


def same(ours, theirs) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(tensors: dict, folder: Path) -> str:
    save_file(tensors, folder / "m.safetensors", {"patch_nums": "[1, 2, 3, 4]"})
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "m.safetensors")
    return str(caught.value)


def test_what_cannot_be_read_is_called_what_it_is(var_case, tmp_path):
    tensors = load_file(var_case.model)
    layer = "blocks.0.ffn.fc1.weight"
    four = {layer: torch.zeros(8, 1, dtype=torch.uint8), f"{layer}.absmax": torch.zeros(2)}
    assert "is quantized by bitsandbytes" in refused(tensors | four, tmp_path)
    eight = {layer: tensors[layer].to(torch.int8), "blocks.0.ffn.fc1.SCB": torch.zeros(2)}
    assert "is quantized by bitsandbytes" in refused(tensors | eight, tmp_path)
    flat = {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}
    assert "FSDP's flat parameters" in refused(flat, tmp_path)
    plain = {name: tensor for name, tensor in tensors.items() if "scale_mul" not in name}
    assert "trained without attn_l2_norm" in refused(plain, tmp_path)


def test_a_folder_with_one_file_is_that_file(cases, tmp_path):
    """Its name says that it edits, and at which size; its own sidecar is read."""
    folder = tmp_path / "my model"
    folder.mkdir()
    tensors = state_dict(cases["varedit_plain"].about["shapes"]["infinity"])
    torch.save(tensors, folder / "8B-512.pth")
    for path in (folder / "8B-512.pth", folder):
        config = load_model(path).config
        assert config.edits and config.pixels == "0.25M"
    (folder / "8B-512.json").write_text('{"pn": "0.60M"}')
    assert load_model(folder).config.pixels == "0.60M"


def test_only_a_files_own_folder_makes_it_an_editing_model(cases, tmp_path):
    tensors = state_dict(cases["varedit_plain"].about["shapes"]["infinity"])
    own, above = tmp_path / "VAREdit", tmp_path / "VAREdit" / "text to image"
    above.mkdir(parents=True)
    for folder in (own, above):
        save_file(tensors, folder / "model.safetensors")
    assert load_model(own / "model.safetensors").config.edits
    assert load_model(own).config.edits
    assert not load_model(above / "model.safetensors").config.edits
    assert not load_model(above).config.edits
