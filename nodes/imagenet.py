"""ImageNet Class (VAR): the class that a VAR model makes images of."""

from pathlib import Path

import torch
from comfy_api.latest import io

NAMES = Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines()
CLASSES = [f"{number} {name}" for number, name in enumerate(NAMES)]
LABEL = "diversevar_class"  # the conditioning entry that holds the class


class ImageNetClass(io.ComfyNode):
    """One of the thousand classes of ImageNet, ILSVRC 2012."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARImageNetClass",
            display_name="ImageNet Class (VAR)",
            category="DiverseVAR",
            description="Chooses what a class-conditional VAR model makes.",
            search_aliases=["var", "imagenet", "class to image", "class label", "category"],
            inputs=[
                io.Combo.Input(
                    "class_name",
                    options=CLASSES,
                    default=CLASSES[207],
                    tooltip="Number and name of the class; type to search.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="For the DiverseVAR Sampler with a VAR model."
                )
            ],
        )

    @classmethod
    def execute(cls, class_name) -> io.NodeOutput:
        return io.NodeOutput(labelled(int(class_name.partition(" ")[0])))


def labelled(label: int) -> list:
    """The conditioning of a class. Its features (1, 1, 1) are the label, to detect mixing."""
    return [[torch.tensor([[[float(label)]]]), {LABEL: label}]]


NODES = [ImageNetClass]
