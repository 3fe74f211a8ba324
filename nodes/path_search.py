"""Energy Path Search: of several candidates, the likeliest."""

from comfy_api.latest import io

from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.path_search import PathSearch
from . import inputs


class PathSearchNode(io.ComfyNode):
    """DiverseAR, arXiv 2512.02931."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARPathSearch",
            display_name="Energy Path Search",
            category="DiverseVAR/methods",
            description="At the first token maps, draws several candidates, looks some maps "
            "ahead and goes on with the likeliest (DiverseAR). For use with a method that makes "
            "images more varied, to keep them good.",
            search_aliases=["var", "diverse", "diversear", "candidates", "quality"],
            inputs=[
                inputs.methods(),
                io.Int.Input(
                    "candidates",
                    default=PathSearch.candidates,
                    min=1,
                    max=64,
                    tooltip="How many ways to try at each map. 1 is off; 4 is typical.",
                ),
                io.Int.Input(
                    "ahead",
                    default=PathSearch.ahead,
                    min=0,
                    max=8,
                    tooltip="How many maps to look ahead, typically 1; each takes time.",
                ),
                io.Int.Input(
                    "side",
                    default=PathSearch.side,
                    min=1,
                    max=128,
                    tooltip="Search at the token maps up to this side; smaller ones are quick.",
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(cls, candidates, ahead, side, method=PLAIN) -> io.NodeOutput:
        return io.NodeOutput(method.add(PathSearch(candidates, ahead, side)))


NODES = [PathSearchNode]
