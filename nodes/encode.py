"""Picture -> token maps."""

import comfy.utils
from comfy_api.latest import io

from ..diversevar_core.pairing import check_pair, picture_size
from . import host
from .load import VARModel

TOKEN_MAPS, SCHEDULE = "diversevar_token_maps", "diversevar_schedule"  # entries of the latent


class Encode(io.ComfyNode):
    """A picture as a VAR model would have drawn it, scale by scale."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREncode",
            display_name="VAR Encode",
            category="DiverseVAR",
            description="Turns pictures into a VAR model's token maps, one for every scale, and "
            "the latent that they add up to. Pictures are cropped and resized to the model's size.",
            search_aliases=["var", "vq encode", "vae encode"],
            inputs=[
                io.Image.Input("pixels", tooltip="The pictures."),
                io.Vae.Input("vae", tooltip="From Load VAR Tokenizer."),
                VARModel.Input("model", tooltip="The model, which decides the token maps."),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="The latent with its tokens, for the sampler's picture input."
                )
            ],
        )

    @classmethod
    def execute(cls, pixels, vae, model) -> io.NodeOutput:
        tokenizer, network = host.tokenizer_of(vae), model.model
        check_pair(network, tokenizer)
        height, width = pixels.shape[1:3]
        nearest = min(network.aspects, key=lambda aspect: abs(aspect - height / width))
        schedule = network.schedule(nearest)
        height, width = picture_size(network, tokenizer, schedule)
        fitted = comfy.utils.common_upscale(
            pixels.movedim(-1, 1), width, height, "lanczos", "center"
        )
        features = vae.encode(fitted.movedim(1, -1)[..., :3])
        host.to_device(model, vae, schedule, 1)
        maps = tokenizer.quantize_maps(features.to(vae.device).float(), schedule)
        f_hat = None
        for scale, tokens in zip(schedule, maps, strict=True):
            f_hat, _ = tokenizer.accumulate(f_hat, tokens, scale)
        latent = {"samples": f_hat.to(vae.output_device)}
        return io.NodeOutput(latent | {TOKEN_MAPS: maps, SCHEDULE: schedule})


NODES = [Encode]
