"""Contact Sheet: rows of prompts, columns of seeds, one image."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from comfy_api.latest import io, ui

from ..diversevar_core.errors import UserError
from ..diversevar_core.images import Row, contact_sheet
from . import inputs

ALIASES = [
    "xy plot", "image grid", "labelled grid", "labeled grid", "compare seeds", "compare prompts",
    "montage", "对比图", "图像网格", "對比圖", "影像網格", "比較表",
]  # fmt: skip


class ContactSheet(io.ComfyNode):
    """The images of any model beside each other."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARContactSheet",
            display_name="Contact Sheet",
            category="DiverseVAR/analysis",
            description="Puts images into one: a row for each prompt, a column for each seed, with "
            "captions. It takes the images of any model.",
            search_aliases=ALIASES,
            is_input_list=True,
            is_output_node=True,
            inputs=[images(), prompts(), seeds()],
            outputs=[io.Image.Output(tooltip="The sheet.")],
        )

    @classmethod
    def execute(cls, images, prompts=(), seeds=()) -> io.NodeOutput:
        rows = []
        for prompt, shown, labels in rows_of(images, prompts, seeds):
            pictures = [inputs.rgb("images", image)[0] for image in shown]
            named = [f"seed {label}" if label.isdecimal() else label for label in labels]
            rows.append(Row(prompt, pictures, named))
        sheet = contact_sheet(rows).movedim(0, -1)[None]
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def images() -> io.Image.Input:
    """Images as lists of batches."""
    return io.Image.Input("images", tooltip="A batch for each prompt, of any model.")


def prompts() -> io.String.Input:
    """A text for each row."""
    return io.String.Input(
        "prompts",
        optional=True,
        force_input=True,
        tooltip="The prompt of each row, from VAR Encode Prompts or any list of texts.",
    )


def seeds() -> io.String.Input:
    """The labels of each row's images."""
    return io.String.Input(
        "seeds",
        optional=True,
        force_input=True,
        tooltip="The seeds of each row, from the sampler; or other labels, with commas.",
    )


def rows_of(
    images: Sequence[torch.Tensor], prompts: Sequence[str], seeds: Sequence[str]
) -> list[Row]:
    """The rows of a sheet from lists of batches (B, H, W, C), prompts and seeds.

    Each batch is a row; if there are as many prompts as fit otherwise, the images are divided among
    them. The images of a row are (1, H, W, C). Raises UserError if the numbers do not fit.
    """
    single = [image for batch in images for image in batch.split(1)]
    batches = [len(batch) for batch in images]
    rows = len(prompts) or (1 if max(batches, default=1) == 1 else len(batches))
    if rows != len(batches):
        if not single or len(single) % rows:
            raise UserError(
                f"There are {len(single)} images for {rows} prompts; connect as many for each "
                "prompt, and the prompts that they were made with."
            )
        batches = [len(single) // rows] * rows
    labels = [label.strip() for text in seeds for label in text.split(",") if label.strip()]
    if labels and len(labels) != len(single):
        raise UserError(
            f"There are {len(labels)} seeds for {len(single)} images; connect the seeds that go "
            "with these images."
        )
    ends = accumulate(batches)
    return [
        Row(prompt, single[end - count : end], labels[end - count : end])
        for prompt, count, end in zip(prompts or [""] * rows, batches, ends, strict=True)
    ]


NODES = [ContactSheet]
