"""Of several ways to go on, the likeliest."""

from comfy_api.latest import io

from ..diversevar_core.methods.path_search import PathSearch
from .spectral import Method, chained


class PathSearchNode(io.ComfyNode):
    """DiverseAR, arXiv 2512.02931."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARPathSearch",
            display_name="Energy Path Search",
            category="DiverseVAR",
            description="At the first token maps, draws several candidates, looks some maps "
            "ahead and goes on with the likeliest (DiverseAR): better pictures where another "
            "method makes them wilder.",
            search_aliases=["var", "diverse", "diversear", "candidates", "quality"],
            inputs=[
                chained(),
                io.Int.Input(
                    "candidates",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many ways to try at each map. 1 is off.",
                ),
                io.Int.Input(
                    "ahead",
                    default=1,
                    min=0,
                    max=8,
                    tooltip="How many maps to look ahead; each takes time.",
                ),
                io.Int.Input(
                    "side",
                    default=4,
                    min=1,
                    max=128,
                    tooltip="Search at the token maps up to this side; smaller ones are quick.",
                ),
            ],
            outputs=[Method.Output(display_name="method", tooltip="For the sampler's method.")],
        )

    @classmethod
    def execute(cls, candidates, ahead, side, method=()) -> io.NodeOutput:
        return io.NodeOutput((*method, PathSearch(candidates, ahead, side)))


NODES = [PathSearchNode]
