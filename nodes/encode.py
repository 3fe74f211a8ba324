"""VAR VAE Encode: an image -> a latent of a size that the model makes."""

import torch
from comfy_api.latest import io

from ..diversevar_core.errors import UserError
from ..diversevar_core.sampling.pairing import image_size
from . import host, inputs


class Encode(io.ComfyNode):
    """The stock VAE Encode, after a crop and a resize to the model's nearest shape."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREncode",
            display_name="VAR VAE Encode",
            category="DiverseVAR",
            description="Turns images into latents for the sampler's latent_image. Images, and "
            "a mask with them, are cropped about the centre and resized to the nearest shape that "
            "the model makes.",
            search_aliases=["var", "vq encode", "vae encode", "inpaint"],
            inputs=[
                io.Image.Input("pixels", tooltip="The images to vary, or to inpaint."),
                inputs.vae(),
                inputs.model("From Load VAR Model; it decides shape and size."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the sampler may draw; it is cropped and resized with its image.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="For the sampler's latent_image.")],
        )

    @classmethod
    def execute(cls, pixels, vae, model, mask=None) -> io.NodeOutput:
        network, core_vae = host.pair(model, vae)
        images = inputs.rgb("pixels", pixels)
        height, width = images.shape[2:]
        nearest = min(network.aspects, key=lambda aspect: abs(aspect - height / width))
        size = image_size(network, core_vae, network.schedule(nearest))
        fitted = host.fit(images, *size)
        latent = {"samples": vae.encode(fitted.movedim(1, -1))}
        if mask is not None:
            latent["noise_mask"] = fit_mask(mask, len(pixels), *size)
        return io.NodeOutput(latent)


def fit_mask(mask: torch.Tensor, images: int, height: int, width: int) -> torch.Tensor:
    """Crop and resize a mask (1 or B, [1,] H, W) like its image -> (1 or B, height, width) in 0..1.

    Raises UserError if the mask is empty, or there are neither one nor ``images`` masks.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if len(mask) not in (1, images):
        raise UserError(
            f"There are {len(mask)} masks for {images} images; give one, or one for each image."
        )
    mask = host.fit(mask.clamp(0, 1), height, width, "area").squeeze(1)
    if not mask.any():
        raise UserError(
            "The mask is empty, so nothing could change; draw a mask, or disconnect it."
        )
    return mask


NODES = [Encode]
