"""VAR VQ Decode: a latent -> images, or how each of them grew from map to map."""

import torch
from comfy_api.latest import io

from ..diversevar_core.errors import UserError
from . import host, inputs

LAST, EVERY = "last", "every map"


class Decode(io.ComfyNode):
    """The stock VAE Decode, also of the sums after every token map."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARDecode",
            display_name="VAR VQ Decode",
            category="DiverseVAR",
            description="Turns the tokens of a VAR model into images: as VAE Decode does, or after "
            "every token map, which shows how an image grew.",
            search_aliases=[
                "vq decode",
                "vae decode",
                "var",
                "tokens to image",
                "scales",
                "growth",
            ],
            inputs=[
                io.Latent.Input("samples", tooltip="From the sampler."),
                inputs.vae(),
                io.Combo.Input(
                    "maps",
                    options=[LAST, EVERY],
                    default=LAST,
                    tooltip="last: the finished images. every map: for each image, what it was "
                    "after every token map, the coarsest first.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    is_output_list=True,
                    tooltip="The images; of every map, a batch for each image.",
                ),
                io.String.Output(
                    display_name="sides",
                    is_output_list=True,
                    tooltip="Of every map, its side: for seeds of Contact Sheet.",
                ),
            ],
        )

    @classmethod
    def execute(cls, samples, vae, maps) -> io.NodeOutput:
        host.core_vae(vae)
        f_hat = samples["samples"]
        if maps == LAST:
            return io.NodeOutput([vae.decode(f_hat)], [""])
        sums = sums_of(samples)
        images = vae.decode(torch.cat(list(sums.values())))  # map by map
        grown = images.unflatten(0, (len(sums), len(f_hat))).unbind(1)
        return io.NodeOutput(list(grown), [", ".join(f"side {side}" for side in sums)] * len(grown))


def sums_of(latent: dict) -> dict[int, torch.Tensor]:
    """A map's side -> the sum so far (B, D, H, W); UserError if the latent does not have them."""
    sums = latent.get(host.SUMS)
    if sums is None or not torch.equal([*sums.values()][-1], latent["samples"]):
        raise UserError(
            "This latent does not say how it grew, as a node between the sampler and this one "
            "made another of it; connect the sampler's, or set maps to last."
        )
    return sums


NODES = [Decode]
