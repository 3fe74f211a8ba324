"""FastVAR: large images in less time."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.fastvar import FastVAR
from . import inputs


class FastVARNode(io.ComfyNode):
    """FastVAR, arXiv 2503.23367."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARFastVAR",
            display_name="FastVAR",
            category="DiverseVAR/methods",
            description="Makes large images in a third of the time or less, at the cost of fine "
            "detail: the last token maps, and the tokens that differ least, are left out.",
            search_aliases=["var", "fast", "speed", "prune", "tokens", "acceleration"],
            inputs=[
                inputs.methods(),
                io.Float.Input(
                    "prune",
                    default=FastVAR.prune,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="Share of tokens that is left out of the middle blocks, at the token "
                    "maps from half the image's side on. 0.5 as published; 0 leaves out none.",
                ),
                io.Int.Input(
                    "skip",
                    default=FastVAR.skip,
                    min=0,
                    max=12,
                    tooltip="How many of the last token maps are not drawn: fine detail, and most "
                    "of the time. 2 as published; 0 draws all.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, prune, skip, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(FastVAR(prune, skip)))


NODES = [FastVARNode]
