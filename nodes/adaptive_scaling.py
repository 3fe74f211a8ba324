"""Adaptive Logit Scaling: less certain early bits."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.adaptive import AdaptiveScaling
from . import inputs


class AdaptiveScalingNode(io.ComfyNode):
    """DiverseAR, arXiv 2512.02931."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARAdaptiveScaling",
            display_name="Adaptive Logit Scaling",
            category="DiverseVAR/methods",
            description="Limits how certain the bits of the first token maps may be, so that "
            "seeds decide more of them (DiverseAR). For Infinity; a VAR model is mostly below "
            "the limits already.",
            search_aliases=["var", "diverse", "diversear", "bits", "temperature"],
            inputs=[
                inputs.methods(),
                io.Float.Input(
                    "strength",
                    default=AdaptiveScaling.strength,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to go from no limit (0, off) to the limits of the paper (1).",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, strength, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(AdaptiveScaling(strength)))


NODES = [AdaptiveScalingNode]
