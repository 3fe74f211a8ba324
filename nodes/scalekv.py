"""Large pictures in less memory."""

from comfy_api.latest import io

from ..diversevar_core.methods.scalekv import ScaleKV
from .spectral import Method, chained


class ScaleKVNode(io.ComfyNode):
    """ScaleKV, arXiv 2505.19602."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARScaleKV",
            display_name="ScaleKV",
            category="DiverseVAR",
            description="Makes large pictures in less memory, at the cost of some detail: after "
            "every token map, each block of the model forgets the tokens that were looked at "
            "least.",
            search_aliases=["var", "memory", "cache", "kv", "vram", "compression"],
            inputs=[
                chained(),
                io.Float.Input(
                    "budget",
                    default=0.1,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the keys and values that is kept from map to map. 0.1 as "
                    "published; 1 keeps all.",
                ),
            ],
            outputs=[Method.Output(display_name="method", tooltip="For the sampler's method.")],
        )

    @classmethod
    def execute(cls, budget, method=()) -> io.NodeOutput:
        return io.NodeOutput((*method, ScaleKV(budget)))


NODES = [ScaleKVNode]
