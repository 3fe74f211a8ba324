"""Empty Latent (VAR): shape, size and number of the images to make."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..diversevar_core.sampling.pairing import patch_of
from ..diversevar_core.schedule import PIXELS
from . import host, inputs

# width:height -> height / width as in the schedules
ASPECT_RATIOS = {
    "1:1 square": 1.0,
    "4:5 portrait": 1.25,
    "3:4 portrait": 1.333,
    "2:3 portrait": 1.5,
    "4:7 portrait": 1.75,
    "1:2 portrait": 2.0,
    "2:5 portrait": 2.5,
    "1:3 portrait": 3.0,
    "5:4 landscape": 0.8,
    "4:3 landscape": 0.75,
    "3:2 landscape": 0.666,
    "7:4 landscape": 0.571,
    "2:1 landscape": 0.5,
    "5:2 landscape": 0.4,
    "3:1 landscape": 0.333,
}
OFFICIAL = "official"


class EmptyLatent(io.ComfyNode):
    """The shapes and pixel budgets of Infinity, arXiv 2412.04431."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREmptyLatent",
            display_name="Empty Latent (VAR)",
            category="DiverseVAR",
            description="Sets shape, size and number of the images that the sampler makes.",
            search_aliases=["var", "infinity", "empty latent image", "size", "aspect ratio"],
            inputs=[
                inputs.model("From Load VAR Model; it decides which shapes and sizes there are."),
                inputs.vae(),
                io.Combo.Input(
                    "aspect_ratio",
                    options=list(ASPECT_RATIOS),
                    tooltip="Width to height. VAR and the included models make squares only.",
                ),
                io.Combo.Input(
                    "megapixels",
                    options=[OFFICIAL, *PIXELS],
                    tooltip="Size in millions of pixels. official: the one that the model was "
                    "trained for.",
                ),
                inputs.batch_size(),
            ],
            outputs=[io.Latent.Output(tooltip="For the sampler's latent_image.")],
        )

    @classmethod
    def execute(cls, model, vae, aspect_ratio, megapixels, batch_size) -> io.NodeOutput:
        network, core_vae = host.pair(model, vae)
        budget = None if megapixels == OFFICIAL else megapixels
        height, width = network.schedule(ASPECT_RATIOS[aspect_ratio], budget)[-1].full
        patch, channels = patch_of(network, core_vae), core_vae.token_kind.channels
        shape = (batch_size, channels, patch * height, patch * width)
        device = comfy.model_management.intermediate_device()
        return io.NodeOutput({"samples": torch.zeros(shape, device=device)})


NODES = [EmptyLatent]
