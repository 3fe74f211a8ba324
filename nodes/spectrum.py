"""What diversity does to singular values, as a picture."""

from itertools import islice

from comfy_api.latest import io

from ..diversevar_core.analysis.spectra import Spectra
from ..diversevar_core.analysis.spectrum_plot import SIDES, shown_blocks, spectrum_plot
from ..diversevar_core.methods.ssr_sar import DiverseVAR, calibrated
from ..diversevar_core.sampling.sampler import sample
from . import host, inputs
from .load import VARModel
from .sample import condition_of, settings_of
from .spectral import Method


class Spectrum(io.ComfyNode):
    """The figures of DiverseVAR, arXiv 2511.17074, for the model and prompt at hand."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSpectrum",
            display_name="Plot Singular Values",
            category="DiverseVAR",
            description="Samples one picture and plots the singular values of the feature maps "
            "that the model and its blocks read and write, before and after SSR and SAR.",
            search_aliases=["var", "diverse", "ssr", "sar", "svd", "spectrum"],
            inputs=[
                VARModel.Input("model", tooltip="From Load VAR Model."),
                io.Vae.Input("vae", tooltip="From Load VAR Tokenizer: the one of this model."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt (Infinity) or a VAR Class Label (VAR)."
                ),
                inputs.seed("Of the picture that is sampled."),
                io.Float.Input(
                    "diversity",
                    display_name="ssr and sar",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Half of it is the strength of SSR, a quarter that of SAR.",
                ),
                Method.Input(
                    "method",
                    optional=True,
                    tooltip="From SSR and SAR (advanced); takes the place of these.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="A panel per token map and block: what it reads above, what it writes "
                    "below; grey before, orange after."
                )
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, seed, diversity, method=None) -> io.NodeOutput:
        network, tokenizer = model.model, host.tokenizer_of(vae)
        schedule = network.schedule()
        device = host.to_device(model, vae, schedule, 1)
        condition = condition_of(network, positive, None, 1, device)
        found = [one for one in method or () if isinstance(one, DiverseVAR)]
        spectral = found[-1] if found else calibrated(diversity)
        watched = Spectra(spectral, SIDES, shown_blocks(network.depth))
        settings = settings_of(network, 0, 0, 0, 0, 0)
        steps = sample(network, tokenizer, condition, schedule, settings, [seed], methods=[watched])
        plotted = tuple(scale for scale in schedule if scale.side <= max(SIDES))
        host.watch(model, islice(steps, len(plotted)), plotted, vae)
        return io.NodeOutput(spectrum_plot(watched.found).movedim(0, -1)[None])


NODES = [Spectrum]
