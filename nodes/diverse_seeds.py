"""Diverse Seeds: choose the seeds whose first maps differ most."""

import torch
from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.starts import Starts
from ..diversevar_core.resize import area
from ..diversevar_core.sampling.method import Step
from . import host, inputs
from .measure import features_of

BY_MAP, BY_IMAGE = "token maps", "small images"


class DiverseSeeds(io.ComfyNode):
    """Greedy k-center over the first maps of many seeds."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSeeds",
            display_name="Diverse Seeds",
            category="DiverseVAR/methods",
            description="Chooses the seeds of a batch: many seeds are drawn through the "
            "first token maps, which is quick, and those that differ most are finished.",
            search_aliases=["var", "diversity", "starts", "seed variety", "different seeds"],
            accept_all_inputs=True,  # unknown choices too, which ``checked`` then names
            inputs=[
                inputs.methods(),
                io.Int.Input(
                    "candidates",
                    default=Starts.candidates,
                    min=1,
                    max=1024,
                    tooltip="How many seeds to start; the sampler finishes as many as the batch "
                    "has images. 1 is off; 64 is typical.",
                ),
                io.Int.Input(
                    "side",
                    default=Starts.side,
                    min=1,
                    max=128,
                    tooltip="Draw the token maps up to this side: small ones are quick, larger "
                    "ones show more of the image. 6 is typical.",
                ),
                io.DynamicCombo.Input(
                    "compare",
                    options=[
                        io.DynamicCombo.Option(BY_MAP, []),
                        io.DynamicCombo.Option(
                            BY_IMAGE,
                            [inputs.vae(), inputs.clip_vision()],
                        ),
                    ],
                    tooltip="Compare the sum of the token maps, or the small images that they "
                    "make.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, candidates, side, compare, method=PLAIN) -> io.NodeOutput:
        if compare["compare"] == BY_MAP:
            return io.NodeOutput(method.with_starts(Starts(candidates, side)))
        vae, clip_vision = compare["vae"], compare.get("clip_vision")

        def features(step: Step) -> torch.Tensor:
            small = area(step.f_hat, step.scale.h, step.scale.w)
            return features_of(vae.decode(small), clip_vision)  # ComfyUI loads both, as they fit

        starts = Starts(candidates, side, features, host.core_vae(vae))
        return io.NodeOutput(method.with_starts(starts))


NODES = [DiverseSeeds]
