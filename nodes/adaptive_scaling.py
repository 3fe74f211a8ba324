"""Less certain early bits."""

from comfy_api.latest import io

from ..diversevar_core.methods.adaptive import AdaptiveScaling
from .spectral import Method, chained


class AdaptiveScalingNode(io.ComfyNode):
    """DiverseAR, arXiv 2512.02931."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARAdaptiveScaling",
            display_name="Adaptive Logits Scaling",
            category="DiverseVAR",
            description="Limits how certain the bits of the first token maps may be, so that "
            "seeds decide more of them (DiverseAR). For Infinity; a VAR model is mostly below "
            "the limits already.",
            search_aliases=["var", "diverse", "diversear", "bits", "temperature", "same face"],
            inputs=[
                chained(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to go from no limit (0, off) to the limits of the paper (1).",
                ),
            ],
            outputs=[Method.Output(display_name="method", tooltip="For the sampler's method.")],
        )

    @classmethod
    def execute(cls, strength, method=()) -> io.NodeOutput:
        return io.NodeOutput((*method, AdaptiveScaling(strength)))


NODES = [AdaptiveScalingNode]
