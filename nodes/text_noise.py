"""CADS Text Noise: noise on the prompt while the first maps are drawn."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.text_noise import TextNoise
from . import inputs


class TextNoiseNode(io.ComfyNode):
    """After CADS, arXiv 2310.17347, and arXiv 2511.21415."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARTextNoise",
            display_name="CADS Text Noise",
            category="DiverseVAR/methods",
            description="Adds noise to what the model reads of the prompt while it draws the "
            "first token maps, less from map to map (CADS). Infinity only.",
            search_aliases=["var", "diverse", "cads", "condition noise"],
            inputs=[
                inputs.methods(),
                io.Float.Input(
                    "strength",
                    default=TextNoise.strength,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How much noise; the prompt counts as 1. 0 is off; 0.25 is typical.",
                ),
                io.Float.Input(
                    "begin",
                    default=TextNoise.begin_time,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Time below which the prompt is clean; time runs from 1 at the first "
                    "map to 0 at the last. Typically 0.6.",
                ),
                io.Float.Input(
                    "end",
                    default=TextNoise.end_time,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Time above which there is only noise; more than 1 leaves some of "
                    "the prompt to the first map. Typically 0.9.",
                ),
                io.Float.Input(
                    "rescale",
                    default=TextNoise.rescale,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to restore the clean prompt's mean and spread after adding "
                    "noise.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, strength, begin, end, rescale, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(TextNoise(strength, begin, end, rescale)))


NODES = [TextNoiseNode]
