"""ScaleKV: large images in less memory."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.scalekv import ScaleKV
from . import inputs


class ScaleKVNode(io.ComfyNode):
    """ScaleKV, arXiv 2505.19602."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARScaleKV",
            display_name="ScaleKV",
            category="DiverseVAR/methods",
            description="Makes large images in less memory, at the cost of some detail: after "
            "every token map, each block of the model drops the keys and values that were attended "
            "to least.",
            search_aliases=["var", "memory", "cache", "kv", "vram", "compression"],
            inputs=[
                inputs.methods(),
                io.Float.Input(
                    "budget",
                    default=ScaleKV.budget,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the keys and values that is kept from map to map. 0.1 as "
                    "published; 1 keeps all.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, budget, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(ScaleKV(budget)))


NODES = [ScaleKVNode]
