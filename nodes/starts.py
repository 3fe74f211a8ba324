"""The seeds whose first maps differ most, in numbers."""

import torch
from comfy_api.latest import io

from ..diversevar_core.methods.starts import Starts
from ..diversevar_core.models.resize import area
from ..diversevar_core.sampling.sampler import Step
from ..diversevar_core.vae.autoencoder import to_image
from . import host
from .measure import features_of
from .spectral import Method, chained

BY_MAP, BY_PICTURE = "token maps", "small pictures"


class StartsNode(io.ComfyNode):
    """Greedy k-center over the first maps of many seeds."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARStarts",
            display_name="Diverse Starts (advanced)",
            category="DiverseVAR",
            description="All parameters of the sampler's starts: many seeds are drawn through the "
            "first token maps, which is quick, and those that differ most are finished.",
            search_aliases=["var", "diverse", "seeds", "pick", "same face", "all seeds look alike"],
            inputs=[
                chained(),
                io.Int.Input(
                    "candidates",
                    default=64,
                    min=1,
                    max=1024,
                    tooltip="How many seeds to start; the sampler finishes its batch_size of them. "
                    "1 is off.",
                ),
                io.Int.Input(
                    "side",
                    default=6,
                    min=1,
                    max=128,
                    tooltip="Draw the token maps up to this side: small ones are quick, larger "
                    "ones show more of the picture.",
                ),
                io.Combo.Input(
                    "compare",
                    options=[BY_MAP, BY_PICTURE],
                    tooltip="Compare the sum of the token maps, or the small pictures that they "
                    "make, by CLIP vision where it is connected.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="From Load VAR Tokenizer; small pictures need it.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Compares what small pictures show; without it, their pixels.",
                ),
            ],
            outputs=[Method.Output(display_name="method", tooltip="For the sampler's method.")],
        )

    @classmethod
    def execute(
        cls, candidates, side, compare, vae=None, clip_vision=None, method=()
    ) -> io.NodeOutput:
        if compare == BY_MAP:
            return io.NodeOutput((*method, Starts(candidates, side)))
        if vae is None:
            raise ValueError("To compare small pictures, connect Load VAR Tokenizer to vae.")
        tokenizer = host.tokenizer_of(vae)

        def features(step: Step) -> torch.Tensor:
            small = area(step.f_hat, step.scale.h, step.scale.w)
            pictures = torch.cat([tokenizer.decode(one) for one in small.split(1)])
            return features_of(to_image(pictures).movedim(1, -1), clip_vision)

        return io.NodeOutput((*method, Starts(candidates, side, features, tokenizer)))


NODES = [StartsNode]
