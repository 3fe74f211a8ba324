"""Measure Diversity, and Select Most Diverse."""

import torch
from comfy_api.latest import io, ui

from ..diversevar_core.diversity import (
    mean_distance,
    most_different,
    pixel_features,
    vendi_score,
)
from . import inputs

# what is typed for images of other models that look alike, and for what helps there
ALIASES = [
    "diversity", "vendi", "similar images", "flux same image", "sdxl same image", "qwen same image",
    "z-image same image", "cfg override", "late guidance", "guidance interval",
]  # fmt: skip


class Measure(io.ComfyNode):
    """The Vendi score, arXiv 2210.02410."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARMeasure",
            display_name="Measure Diversity",
            category="DiverseVAR/analysis",
            description="Says how many different images a batch amounts to (Vendi score, from 1 "
            "to the batch's size) and how far apart they are (mean cosine distance).",
            search_aliases=ALIASES,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The batch to measure."),
                inputs.clip_vision(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="vendi",
                    tooltip="How many different images this is, from 1 to the batch's size.",
                ),
                io.Float.Output(
                    display_name="distance",
                    tooltip="How far apart two images are on average; 0 is all alike.",
                ),
                io.String.Output(display_name="report", tooltip="Both, as a sentence."),
            ],
        )

    @classmethod
    def execute(cls, images, clip_vision=None) -> io.NodeOutput:
        features = features_of(images, clip_vision)
        vendi, distance = vendi_score(features), mean_distance(features)
        report = (
            f"{len(images)} images amount to {vendi:.2f} different ones; "
            f"mean distance {distance:.3f} ({'pixels' if clip_vision is None else 'CLIP vision'})."
        )
        return io.NodeOutput(vendi, distance, report, ui=ui.PreviewText(report))


class Select(io.ComfyNode):
    """Greedy k-center."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSelect",
            display_name="Select Most Diverse",
            category="DiverseVAR/analysis",
            description="Keeps the images of a batch that differ most from each other.",
            search_aliases=["diverse", "select", "best of", "filter batch"],
            inputs=[
                io.Image.Input("images", tooltip="The batch to select from."),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many images to keep."),
                inputs.clip_vision(),
            ],
            outputs=[io.Image.Output(tooltip="The selected images, in their order.")],
        )

    @classmethod
    def execute(cls, images, count, clip_vision=None) -> io.NodeOutput:
        return io.NodeOutput(images[most_different(features_of(images, clip_vision), count)])


def features_of(images: torch.Tensor, clip_vision) -> torch.Tensor:
    """Features (B, C) of images (B, H, W, 1 or 3 or 4): CLIP vision's, or small copies of them."""
    images = inputs.rgb("images", images)
    if clip_vision is None:
        return pixel_features(images)
    return clip_vision.encode_image(images.movedim(1, -1))["image_embeds"].cpu()


NODES = [Measure, Select]
