"""The paper's own numbers, for the sampler's method input."""

from comfy_api.latest import io

from ..diversevar_core.methods.ssr_sar import SITES, DiverseVAR
from ..diversevar_core.quote import quote

Method = io.Custom("DIVERSEVAR_METHOD")
RATES = ("relative", "absolute")


def chained() -> io.Input:
    """The input that every method's node has, so that methods chain."""
    return Method.Input(
        "method",
        optional=True,
        tooltip="Other methods, which act too, one of each kind; their order never matters.",
    )


class Spectral(io.ComfyNode):
    """DiverseVAR, arXiv 2511.17074."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSpectral",
            display_name="SSR and SAR (advanced)",
            category="DiverseVAR",
            description="All of the paper's parameters of the sampler's ssr and sar: SSR softens "
            "the "
            "dominant singular values of what the transformer reads at early token maps, SAR "
            "strengthens those of what it writes.",
            search_aliases=["var", "diverse", "ssr", "sar", "singular values", "same face"],
            inputs=[
                chained(),
                io.Float.Input(
                    "ssr",
                    default=0.5,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="How strongly to loosen the composition that all seeds share. 0 is "
                    "off.",
                ),
                io.Float.Input(
                    "sar",
                    default=0.25,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How strongly to push what the seed makes of it. 0 is off.",
                ),
                io.String.Input(
                    "sides",
                    default="4,6",
                    tooltip="Which token maps to act on, by side: smaller sides decide layout, "
                    "larger ones detail. 4,6 are the paper's.",
                ),
                io.Combo.Input(
                    "site",
                    options=list(SITES),
                    tooltip="Act once on the whole transformer, on every block of it, or once but "
                    "on the input before it is told its scale.",
                ),
                io.Combo.Input(
                    "rates",
                    options=list(RATES),
                    tooltip="Strengths per share of the largest singular value (the same on every "
                    "model), or per unit of it, as the paper writes beta.",
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
            outputs=[
                Method.Output(
                    display_name="method", tooltip="For the sampler, in place of its ssr and sar."
                )
            ],
        )

    @classmethod
    def execute(
        cls, ssr, sar, sides, site, rates, ssr_alpha, sar_alpha, method=()
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
        return io.NodeOutput((*method, own))


def read_sides(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"sides must be whole numbers with commas, as in 4,6; not {quote(text)}."
        ) from None


NODES = [Spectral]
