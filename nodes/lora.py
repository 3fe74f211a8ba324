"""Load LoRA (VAR)."""

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

from ..diversevar_core.checkpoints.files import read_tensors
from ..diversevar_core.errors import UserError, quote
from . import folders, host, inputs

# prefixes that training tools and torch add to a layer's name
PREFIXES = re.compile(
    r"^(?:(?:module|_orig_mod|base_model\.model|diffusion_model|transformer)\.|"
    r"lora_unet_|lora_transformer_|lycoris_)+"
)


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

    Raises UserError if the file is broken, or was made for another model.
    """
    tensors = {PREFIXES.sub("", name): tensor for name, tensor in read_tensors(path).items()}
    for name, tensor in tensors.items():
        if name.endswith(".alpha") and tensor.numel() != 1:
            raise UserError(f"{quote(path)}: {quote(name)} has {tensor.numel()} numbers, not one.")
        if 0 in tensor.shape:
            raise UserError(f"{quote(path)}: {quote(name)} is empty; the file is broken.")
        if not tensor.float().isfinite().all():
            raise UserError(f"{quote(path)}: {quote(name)} contains NaN or infinity.")
    named = layers(model)
    try:
        patches = comfy.lora.load_lora(tensors, named)
    except KeyError as error:
        raise UserError(
            f"{quote(path)} lacks {quote(error.args[0])}, half of a layer; it is broken."
        ) from error
    held = model.model.state_dict()
    patches = {name: patch for name, patch in patches.items() if name in held}
    if not patches:
        raise UserError(
            f"{quote(path)} has no weights for this model; choose a LoRA that was trained on it."
        )
    for name in tensors:
        layer, lora, _ = name.partition(".lora")
        if lora and layer in named and named[layer] not in patches:
            raise UserError(f"{quote(path)} has {quote(name)} without its other half.")
    for name, patch in patches.items():
        shape = comfy.utils.get_attr(model.model, name).shape  # a quantized one's before packing
        if not fits(patch, shape, name):
            has = " and ".join(
                str(list(part.shape)) for part in host.parts_of(patch) if isinstance(part, Tensor)
            )
            raise UserError(
                f"{quote(path)} was made for another model: for {name} it has {has}, and this "
                f"model's is {list(shape)}; choose a LoRA that was trained on it."
            )
    return patches


def fits(patch: WeightAdapterBase | tuple, shape: torch.Size, name: str) -> bool:
    """Whether a patch can change a weight of this shape; ComfyUI would only log an error later.

    It is tried on a meta tensor, or on a real one for OFT and BOFT, which read their own values.
    """
    if not isinstance(patch, WeightAdapterBase):
        return host.parts_of(patch)[0].shape == shape
    rotates = isinstance(patch, (OFTAdapter, BOFTAdapter))
    with torch.inference_mode(False):  # as inference tensors have no _version
        weight = torch.zeros(shape, device="cpu" if rotates else "meta")
        try:
            changed = patch.calculate_weight(weight, name, 1.0, 1.0, None, lambda change: change)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False
        return changed is weight and weight._version > 0


def layers(model: ModelPatcher) -> dict[str, str]:
    """All names that a LoRA may use for a layer -> the weight's name in the model.

    These are the name in this model, the name in its file (which differs for Infinity), and both in
    kohya's format, with underscores for dots.
    """
    found = {}
    for name, in_file in model.get_attachment(host.FILE_NAMES).items():
        if name.endswith(".weight"):
            for layer in {name.removesuffix(".weight"), in_file.removesuffix(".weight")}:
                found[layer] = found[layer.replace(".", "_")] = name
    return found


NODES = [LoadLora]
