"""Calibrate Diversity: find the preset that suits a model."""

from functools import partial

import comfy.utils
from comfy_api.latest import io, ui

from ..diversevar_core.analysis.calibrate import Task, calibrate, choose, labels_of, lines_of
from ..diversevar_core.analysis.front import front_plot
from ..diversevar_core.conditions import Text
from ..diversevar_core.errors import UserError, quote
from ..diversevar_core.presets import calibration_path
from . import host, inputs
from .imagenet import labelled
from .measure import features_of
from .sample import condition_of


class Calibrate(io.ComfyNode):
    """Diversity against the model's own judgement of its images."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARCalibrate",
            display_name="Calibrate Diversity",
            category="DiverseVAR/analysis",
            description="Finds the strength at which seeds differ most while the images still "
            "follow your prompts. The sampler's preset my calibration then uses it.",
            search_aliases=["var", "diverse", "tune", "strength", "my calibration"],
            is_output_node=True,
            inputs=[
                inputs.model(),
                inputs.vae(),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="cat face\nred apple\nsunflower\noctopus",
                    tooltip="A few prompts that are typical for you, one per line; for a VAR "
                    "model, the numbers of classes.",
                ),
                io.Int.Input(
                    "seeds",
                    default=6,
                    min=2,
                    max=64,
                    tooltip="Images per prompt and strength; more is more reliable and slower.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="From Load VAR CLIP (T5), to encode the prompts; VAR has none.",
                ),
                inputs.clip_vision(),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="The strengths as points: right follows the prompts better, up differs "
                    "more; the chosen one is orange."
                ),
                io.String.Output(display_name="report", tooltip="What was chosen, in a sentence."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, prompts, seeds, clip=None, clip_vision=None) -> io.NodeOutput:
        network, core_vae = host.pair(model, vae)
        path = calibration_path(model.get_attachment(host.FILE))
        lines = lines_of(prompts)
        if clip is not None:
            encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines]
        elif network.reads is Text:
            raise UserError(f"{network.name} takes prompts; connect Load VAR CLIP to clip.")
        else:
            encoded = [labelled(label) for label in labels_of(lines)]
        conditions = [
            condition_of(network, positive, None, 1, model.load_device) for positive in encoded
        ]
        task = Task(
            network,
            core_vae,
            conditions,
            seeds,
            lambda images: features_of(images.movedim(1, -1), clip_vision),
        )
        need = model, vae, network.schedule(), network.defaults(), seeds
        bar = comfy.utils.ProgressBar(1000)
        measured = []
        for now, done in calibrate(task, path, ready=partial(host.to_device, *need)):
            measured = now
            bar.update_absolute(round(1000 * done))
        chosen = choose(measured)
        plot = front_plot(measured, chosen).movedim(0, -1)[None]
        report = (
            f"Of {len(measured)} presets, {chosen.preset} suits this model; saved to {quote(path)}."
        )
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(report).as_dict()
        return io.NodeOutput(plot, report, ui=shown)


NODES = [Calibrate]
