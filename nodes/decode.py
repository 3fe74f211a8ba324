"""Latent -> picture."""

import torch
from comfy_api.latest import io

from . import host


class Decode(io.ComfyNode):
    """The stock VAE Decode does the same; this one says what does not fit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARDecode",
            display_name="VAR Decode",
            category="DiverseVAR",
            description="Turns the sampler's latent into pictures. Stock VAE Decode does too.",
            search_aliases=["var", "vq decode", "vae decode"],
            inputs=[
                io.Latent.Input("samples", tooltip="From the DiverseVAR Sampler."),
                io.Vae.Input("vae", tooltip="From Load VAR Tokenizer."),
            ],
            outputs=[io.Image.Output(tooltip="The pictures.")],
        )

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        check_latent(samples["samples"])
        channels = host.tokenizer_of(vae).token_kind.channels
        if samples["samples"].shape[1] != channels:
            raise ValueError(
                f"The latent has {samples['samples'].shape[1]} channels, but this tokenizer reads "
                f"{channels}; connect the tokenizer that the sampler used."
            )
        return io.NodeOutput(vae.decode(samples["samples"]))


def check_latent(samples: torch.Tensor) -> None:
    """Raise ValueError where a latent is not pictures (B, D, H, W)."""
    if samples.ndim != 4:
        raise ValueError(
            f"The latent is of a video or another kind ({samples.ndim} dimensions, where pictures "
            "have 4); connect one of a VAR model."
        )


NODES = [Decode]
