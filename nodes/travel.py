"""Scale Travel: keep the coarse token maps of finished images and draw the others again."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from . import inputs


class TravelNode(io.ComfyNode):
    """The second stage of arXiv 2511.21415."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARTravel",
            display_name="Scale Travel",
            category="DiverseVAR/methods",
            description="Keeps the coarse token maps of the finished images and draws the others "
            "again under the clean prompt, to repair what CADS Text Noise broke. Takes twice the "
            "time.",
            search_aliases=["var", "diverse", "refine", "travel", "quality"],
            inputs=[
                inputs.methods(),
                io.Int.Input(
                    "side",
                    default=4,
                    min=0,
                    max=128,
                    tooltip="Keep the finished image's token maps up to this side and draw the "
                    "others again. 0 is off.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, side, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.with_travel(side))


NODES = [TravelNode]
