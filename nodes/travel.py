"""Back to a picture's coarse maps, and on again."""

from comfy_api.latest import io

from ..diversevar_core.methods.travel import Travel
from .spectral import Method, chained


class TravelNode(io.ComfyNode):
    """The second stage of arXiv 2511.21415."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARTravel",
            display_name="Scale Travel",
            category="DiverseVAR",
            description="Finishes the pictures, encodes them, keeps their coarse token maps and "
            "draws "
            "the others again under the clean prompt: what Text Noise made different stays, what "
            "it broke is put right. Takes twice the time.",
            search_aliases=["var", "diverse", "refine", "travel", "quality"],
            inputs=[
                chained(),
                io.Int.Input(
                    "side",
                    default=4,
                    min=0,
                    max=128,
                    tooltip="Keep the finished picture's token maps up to this side and draw the "
                    "others again. 0 is off.",
                ),
            ],
            outputs=[Method.Output(display_name="method", tooltip="For the sampler's method.")],
        )

    @classmethod
    def execute(cls, side, method=()) -> io.NodeOutput:
        return io.NodeOutput((*method, Travel(side)))


NODES = [TravelNode]
