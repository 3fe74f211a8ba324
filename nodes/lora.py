"""Fine-tuned weights for the transformer."""

import re
from pathlib import Path

import comfy.lora
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import BOFTAdapter, OFTAdapter, WeightAdapterBase
from comfy_api.latest import io
from torch import Tensor

from ..diversevar_core.files import read_file, unwrap
from ..diversevar_core.quote import quote
from . import folders, host
from .load import VARModel

# what trainers and torch put before a layer's name in the model's file
PREFIXES = re.compile(
    r"^(?:(?:module|_orig_mod|base_model\.model|diffusion_model|transformer)\.|"
    r"lora_unet_|lora_transformer_|lycoris_)+"
)


class LoadLora(io.ComfyNode):
    """LoRA, arXiv 2106.09685, in the layouts that the host reads, for VAR and Infinity."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARLoadLora",
            display_name="Load VAR LoRA",
            category="DiverseVAR",
            description="Adds a LoRA to a VAR or Infinity model. Several in a row add up.",
            search_aliases=["var", "infinity", "lora", "fine-tune", "load lora"],
            inputs=[
                VARModel.Input("model", tooltip="From Load VAR Model, or another Load VAR LoRA."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A LoRA that was trained on this model, from models/loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it to add: 1 as trained, 0 nothing, below 0 its opposite.",
                ),
            ],
            outputs=[
                VARModel.Output(display_name="model", tooltip="The model with the LoRA in it.")
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name=None):
        return folders.check(folders.lora_path, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name=None, **others):
        return folders.version(folders.lora_path, lora_name)

    @classmethod
    def execute(cls, model, lora_name, strength) -> io.NodeOutput:
        path = folders.lora_path(lora_name)
        patches = patches_for(model, path)
        model = model.clone()
        model.add_patches(patches, strength)
        return io.NodeOutput(model)


def patches_for(model: ModelPatcher, path: Path) -> dict[str, object]:
    """What a LoRA's file adds to the model's weights, by their names, in the host's form.

    No sidecar is read. ValueError where the file is broken, or was made for another model.
    """
    content, _ = read_file(path)
    tensors = {
        PREFIXES.sub("", name).replace("_orig_mod.", ""): tensor
        for name, tensor in unwrap(content, bool).items()
    }
    for name, tensor in tensors.items():
        if name.endswith(".alpha") and tensor.numel() != 1:
            raise ValueError(f"{quote(path)}: {quote(name)} has {tensor.numel()} numbers, not one.")
        if 0 in tensor.shape:
            raise ValueError(f"{quote(path)}: {quote(name)} is empty; the file is broken.")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{quote(path)}: {quote(name)} holds NaN or infinity; it is broken.")
    named = layers(model)
    try:
        patches = comfy.lora.load_lora(tensors, named)
    except KeyError as error:
        raise ValueError(
            f"{quote(path)} lacks {quote(error.args[0])}, half of a layer; it is broken."
        ) from error
    held = model.model.state_dict()
    patches = {name: patch for name, patch in patches.items() if name in held}
    if not patches:
        raise ValueError(
            f"{quote(path)} has no weights for this model; choose a LoRA that was trained on it."
        )
    for name in tensors:
        layer, lora, _ = name.partition(".lora")
        if lora and layer in named and named[layer] not in patches:
            raise ValueError(f"{quote(path)} has {quote(name)} without its other half.")
    for name, patch in patches.items():
        shape = comfy.utils.get_attr(model.model, name).shape  # not as a quantized one is packed
        if not fits(patch, shape, name):
            has = " and ".join(
                str(list(part.shape)) for part in host.parts_of(patch) if isinstance(part, Tensor)
            )
            raise ValueError(
                f"{quote(path)} was made for another model: for {name} it has {has}, and this "
                f"model's is {list(shape)}; choose a LoRA that was trained on it."
            )
    return patches


def fits(patch: WeightAdapterBase | tuple, shape: torch.Size, name: str) -> bool:
    """Whether a patch can change a weight of this shape and name; the host would only log it.

    It is tried on a weight without numbers, but for rotations, which look at their own.
    """
    if not isinstance(patch, WeightAdapterBase):
        return host.parts_of(patch)[0].shape == shape
    rotates = isinstance(patch, (OFTAdapter, BOFTAdapter))
    with torch.inference_mode(False):  # where torch counts the changes of a tensor
        weight = torch.zeros(shape, device="cpu" if rotates else "meta")
        try:
            changed = patch.calculate_weight(weight, name, 1.0, 1.0, None, lambda change: change)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False
        return changed is weight and weight._version > 0


def layers(model: ModelPatcher) -> dict[str, str]:
    """Every name that a LoRA may have for a layer -> the weight's name in the model.

    A layer is called as in this model or as in its file (Infinity's have other names there), or in
    kohya's way, with underscores for dots.
    """
    found = {}
    for name, in_file in model.get_attachment(host.FILE_NAMES).items():
        if name.endswith(".weight"):
            for layer in {name.removesuffix(".weight"), in_file.removesuffix(".weight")}:
                found[layer] = found[layer.replace(".", "_")] = name
    return found


NODES = [LoadLora]
