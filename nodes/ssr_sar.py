"""DiverseVAR (SSR/SAR): the method with all of its parameters."""

from comfy_api.latest import io

from ..diversevar_core.errors import UserError, quote
from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.ssr_sar import PAPER, SITES, DiverseVAR
from . import inputs


class SSRSAR(io.ComfyNode):
    """DiverseVAR, arXiv 2511.17074."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSSRSAR",
            display_name="DiverseVAR (SSR/SAR)",
            category="DiverseVAR/methods",
            description="DiverseVAR with all of its parameters: SSR weakens the largest singular "
            "values of what the model reads at early token maps, SAR strengthens those of what it "
            "puts out.",
            search_aliases=["var", "diversity", "ssr", "sar", "singular values"],
            inputs=[
                inputs.methods(),
                inputs.ssr(PAPER.ssr),
                inputs.sar(PAPER.sar),
                io.String.Input(
                    "sides",
                    default="4,6",
                    tooltip="Which token maps to act on, by side: smaller sides decide layout, "
                    "larger ones detail. 4,6 are the paper's.",
                ),
                io.Combo.Input(
                    "site",
                    options=list(SITES),
                    tooltip="block: on the input and output of every block, as summaries of the "
                    "paper say. model: once, on the whole transformer. features: as model, but "
                    "before the embedding of the scale is added.",
                ),
                io.Combo.Input(
                    "rates",
                    options=["relative", "absolute"],
                    tooltip="relative: strengths per share of the largest singular value, the same "
                    "on every model. absolute: per unit of it, as the paper writes beta.",
                ),
                io.Float.Input(
                    "ssr_alpha",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    tooltip="The paper's alpha of SSR: an overall gain.",
                    advanced=True,
                ),
                io.Float.Input(
                    "sar_alpha",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    tooltip="The paper's alpha of SAR: an overall gain.",
                    advanced=True,
                ),
            ],
            outputs=[inputs.method_output()],
        )

    @classmethod
    def execute(
        cls, ssr, sar, sides, site, rates, ssr_alpha, sar_alpha, method=PLAIN
    ) -> io.NodeOutput:
        own = DiverseVAR(
            ssr=ssr,
            sar=sar,
            sides=read_sides(sides),
            site=site,
            ssr_alpha=ssr_alpha,
            sar_alpha=sar_alpha,
            relative=rates == "relative",
        )
        return io.NodeOutput(method.add(own))


def read_sides(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"sides must be comma-separated integers, e.g. 4,6; not {quote(text)}."
        ) from None


NODES = [SSRSAR]
