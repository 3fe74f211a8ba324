"""Batch Repulsion: images of a batch avoid tokens of the earlier ones."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.repulsion import Repulsion
from . import inputs


class RepulsionNode(io.ComfyNode):
    """After particle guidance, arXiv 2310.13102."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARRepulsion",
            display_name="Batch Repulsion",
            category="DiverseVAR/methods",
            description="At the first token maps, makes what earlier images of a batch drew "
            "less likely for the later ones. An image then depends on those before it in the "
            "batch.",
            search_aliases=["var", "diverse", "particle guidance", "batch"],
            inputs=[
                inputs.methods(),
                io.Float.Input(
                    "strength",
                    default=Repulsion.strength,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    tooltip="How strongly to push apart: a token that all earlier images drew has "
                    "its logit lowered by this much. 0 is off; 4 is typical.",
                ),
                io.Int.Input(
                    "side",
                    default=Repulsion.side,
                    min=1,
                    max=128,
                    tooltip="Act on the token maps up to this side; they decide the idea.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, strength, side, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(Repulsion(strength, side)))


NODES = [RepulsionNode]
