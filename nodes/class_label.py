"""A class for VAR to paint."""

import torch
from comfy_api.latest import io

LABEL = "diversevar_label"  # the conditioning entry that holds the class


class ClassLabel(io.ComfyNode):
    """One of ImageNet's classes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARClassLabel",
            display_name="VAR Class Label",
            category="DiverseVAR",
            description="Chooses what a class-conditional VAR model paints, by ImageNet class.",
            search_aliases=["var", "imagenet", "class"],
            inputs=[
                io.Int.Input(
                    "label",
                    default=207,
                    min=0,
                    max=999,
                    tooltip="ImageNet class, 0 to 999: 207 is a golden retriever, 88 a macaw, "
                    "980 a volcano.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="For a VAR model's DiverseVAR Sampler."
                )
            ],
        )

    @classmethod
    def execute(cls, label) -> io.NodeOutput:
        return io.NodeOutput(labelled(label))


def labelled(label: int) -> list:
    """The conditioning of a class; its features (1, 1, 1) are the label, so that mixing shows."""
    return [[torch.tensor([[[float(label)]]]), {LABEL: label}]]


NODES = [ClassLabel]
