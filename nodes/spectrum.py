"""Plot Singular Values: what SSR and SAR do to a model."""

from itertools import islice

from comfy_api.latest import io, ui

from ..diversevar_core.analysis.spectra import Spectra
from ..diversevar_core.analysis.spectrum_plot import SIDES, shown_blocks, spectrum_plot
from ..diversevar_core.job import PLAIN
from ..diversevar_core.methods.ssr_sar import PAPER, DiverseVAR
from ..diversevar_core.sampling.sampler import sample
from . import host, inputs
from .sample import condition_of


class Spectrum(io.ComfyNode):
    """The figures of DiverseVAR, arXiv 2511.17074, for the model and prompt at hand."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSpectrum",
            display_name="Plot Singular Values",
            category="DiverseVAR/analysis",
            description="Samples one image and plots the singular values of the feature maps "
            "that the model and its blocks read and write, before and after SSR and SAR.",
            search_aliases=["var", "diversity", "ssr", "sar", "svd", "spectrum"],
            is_output_node=True,
            inputs=[
                inputs.model(),
                inputs.vae(),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt (Infinity) or an ImageNet Class (VAR)."
                ),
                inputs.seed("The seed of the image that is sampled."),
                inputs.methods(),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="A panel per token map and block: what it reads above, what it writes "
                    "below; grey before, orange after."
                )
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, seed, method=PLAIN) -> io.NodeOutput:
        network, core_vae = host.pair(model, vae)
        schedule, settings = network.schedule(), network.defaults()
        condition = condition_of(network, positive, None, 1, model.load_device)
        host.to_device(model, vae, schedule, settings, 1)
        spectral = next((m for m in method.methods if isinstance(m, DiverseVAR)), PAPER)
        watched = Spectra(spectral, SIDES, shown_blocks(network.depth))
        steps = sample(network, core_vae, condition, schedule, settings, [seed], methods=[watched])
        plotted = tuple(scale for scale in schedule if scale.side <= max(SIDES))
        host.watch(model, islice(steps, len(plotted)), plotted, vae)
        plot = spectrum_plot(watched.values).movedim(0, -1)[None]
        return io.NodeOutput(plot, ui=ui.PreviewImage(plot, cls=cls))


NODES = [Spectrum]
