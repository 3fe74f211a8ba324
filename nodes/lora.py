"""Fine-tuned weights for the transformer."""

import comfy.lora
import folder_paths
from comfy_api.latest import io

from ..diversevar_core.files import read
from . import host
from .load import VARModel

# how trainers call a layer of this name in the model's file
LAYOUTS = ("{}", "diffusion_model.{}", "transformer.{}", "base_model.model.{}")


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
    def execute(cls, model, lora_name, strength) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        patches = comfy.lora.load_lora(read(path, bool).tensors, layers(model))
        if not patches:
            raise ValueError(
                f"{path} has no weights for this model; choose a LoRA that was trained on it."
            )
        model = model.clone()
        model.add_patches(patches, strength)
        return io.NodeOutput(model)


def layers(model) -> dict[str, str]:
    """Every name that a LoRA may have for a layer -> the weight's name in the model.

    A layer is called as in this model or as in its file (Infinity's have other names there), in one
    of the layouts, or in kohya's, which has underscores for dots.
    """
    found = {}
    for name, in_file in model.get_attachment(host.FILE_NAMES).items():
        if name.endswith(".weight"):
            for layer in {name.removesuffix(".weight"), in_file.removesuffix(".weight")}:
                found |= {layout.format(layer): name for layout in LAYOUTS}
                found["lora_unet_" + layer.replace(".", "_")] = name
    return found


NODES = [LoadLora]
