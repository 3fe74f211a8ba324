"""Load LoRA (VAR)."""

import re
from collections.abc import Sequence
from pathlib import Path

import comfy.lora
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoHaAdapter, LoRAAdapter, WeightAdapterBase
from comfy_api.latest import io
from torch import Tensor

from ..diversevar_core.checkpoints.files import read_object, read_tensors
from ..diversevar_core.errors import UserError, quote
from . import folders, host, inputs

# prefixes that training tools and torch add to a layer's name
PREFIXES = re.compile(
    r"^(?:(?:module|_orig_mod|base_model\.model|diffusion_model|transformer)\.|"
    r"lora_unet_|lora_transformer_|lycoris_)+"
)

NUMBER = re.compile(r"\.(alpha|reshape_weight)$")  # read as numbers, not as tensors


class LoadLora(io.ComfyNode):
    """LoRA, arXiv 2106.09685, in all formats that ComfyUI reads."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARLoadLora",
            display_name="Load LoRA (VAR)",
            category="DiverseVAR/loaders",
            description="Adds a LoRA to a VAR or Infinity model. Several in a row add up.",
            search_aliases=["var", "infinity", "lora", "fine-tune", "load lora"],
            inputs=[
                inputs.VARModel.Input(
                    "model", tooltip="From Load VAR Model, or another Load LoRA."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A LoRA that was trained on this model, from models/loras.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it to add: 1 as trained, 0 nothing, below 0 its opposite.",
                ),
            ],
            outputs=[
                inputs.VARModel.Output(
                    display_name="model", tooltip="The model with the LoRA in it."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name=None):
        return folders.check(folders.lora_path, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, **others):
        return folders.version(folders.lora_path, lora_name)

    @classmethod
    def execute(cls, model, lora_name, strength_model) -> io.NodeOutput:
        path = folders.lora_path(lora_name)
        patches = patches_for(model, path)
        model = model.clone()
        model.add_patches(patches, strength_model)
        return io.NodeOutput(model)


def patches_for(model: ModelPatcher, path: Path) -> dict[str, object]:
    """Read a LoRA file: weight name -> ComfyUI's patch.

    Raises UserError if the file is broken, was made for another model, or has tensors that would be
    left out, as the LoRA would then not be what was trained.
    """
    tensors = {PREFIXES.sub("", name): tensor for name, tensor in read_tensors(path).items()}
    tensors = peft_alphas(path, tensors) | tensors
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise UserError(f"{quote(path)} is broken: {quote(name)} contains NaN or infinity.")
    try:
        patches = comfy.lora.load_lora(tensors, layers(model), log_missing=False)
    except KeyError as error:
        raise UserError(
            f"{quote(path)} lacks {quote(error.args[0])}, half of a layer; it is broken."
        ) from error
    weights = model.model.state_dict()
    patches = {name: patch for name, patch in patches.items() if name in weights}
    used = {id(part) for patch in patches.values() for part in parts_of(patch)}
    unused = [name for name in tensors if id(tensors[name]) not in used and not NUMBER.search(name)]
    if unused:
        raise UserError(
            f"{quote(path)} has {len(unused)} tensors that cannot be used with this model, such as "
            f"{quote(unused[0])}; choose a LoRA that was trained on it, and has no others."
        )
    for name, patch in patches.items():
        check_shape(patch, comfy.utils.get_attr(model.model, name).shape, name, path)
    return patches


def peft_alphas(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The alpha of every layer, from the ``adapter_config.json`` that PEFT writes next to a LoRA.

    PEFT scales a LoRA of rank r by alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732);
    ComfyUI by alpha / r with the alpha in the file, and without one not at all.
    """
    file = path.with_name("adapter_config.json")
    if not path.stem.startswith("adapter_model") or not file.is_file():
        return {}
    config, alphas = read_object(file), {}
    alpha = config.get("lora_alpha", 8)  # PEFT's own default
    patterns = config.get("alpha_pattern") or {}  # layers' endings -> their own alpha
    for name, down in tensors.items():
        layer, is_down, _ = name.partition(".lora_A")
        if is_down:
            own = (patterns[end] for end in patterns if f".{layer}".endswith(f".{end}"))
            root = down.shape[:1].numel() ** 0.5 if config.get("use_rslora") else 1
            alphas[f"{layer}.alpha"] = torch.tensor(next(own, alpha) * root)
    return alphas


def check_shape(patch: object, shape: torch.Size, name: str, path: Path) -> None:
    """Raise UserError if a patch does not fit a weight, which ComfyUI only logs as it samples.

    Its rarer kinds (LoKr, OFT, GLoRA) are left to it.
    """
    parts = parts_of(patch)
    if isinstance(patch, (LoRAAdapter, LoHaAdapter)):
        up, down = parts = parts[:2]
        fits = (*up.shape[:1], *down.shape[1:]) == shape and up.shape[1:] == down.shape[:1]
    else:
        fits = isinstance(patch, WeightAdapterBase) or parts[0].shape == shape
    if not fits:
        has = " and ".join(str(list(part.shape)) for part in parts)
        raise UserError(
            f"{quote(path)} was made for another model: for {name} it has {has}, and this "
            f"model's is {list(shape)}; choose a LoRA that was trained on it."
        )


def parts_of(patch: object) -> Sequence[object]:
    """The tensors and numbers of one of ComfyUI's patches."""
    return patch.weights if isinstance(patch, WeightAdapterBase) else patch[-1]


def layers(model: ModelPatcher) -> dict[str, str]:
    """All names that a LoRA may use for a layer -> the weight's name in the model.

    These are the name in this model, the name in its file (which differs for Infinity), and both in
    kohya's format, with underscores for dots.
    """
    names = {}
    for name, in_file in model.get_attachment(host.FILE_NAMES).items():
        if name.endswith(".weight"):
            for layer in {name.removesuffix(".weight"), in_file.removesuffix(".weight")}:
                names[layer] = names[layer.replace(".", "_")] = name
    return names


NODES = [LoadLora]
