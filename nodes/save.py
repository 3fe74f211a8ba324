"""Save Image with Seeds: each file's metadata has its image's seed."""

import os
import re
from types import SimpleNamespace

from comfy_api.latest import io, ui

from ..diversevar_core.errors import UserError

SEED = "diversevar_seed"  # the seed's key in a file's metadata
PREFIX = "DiverseVAR"


class Save(io.ComfyNode):
    """The stock Save Image, with each image's seed in addition to the workflow."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSave",
            display_name="Save Image with Seeds",
            category="DiverseVAR",
            description="Saves images as Save Image does, each with its own seed in its "
            "metadata: with starts, the workflow alone does not say which were chosen.",
            search_aliases=["save image", "metadata", "seed", "export image"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The images to save."),
                io.String.Input(
                    "seeds",
                    force_input=True,
                    tooltip="The seeds of these images, from the sampler or VAR Edit Image.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=PREFIX,
                    tooltip="How the files' names begin, as on Save Image.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, images, seeds, filename_prefix) -> io.NodeOutput:
        numbers = [number.strip() for number in seeds.split(",")]
        if len(numbers) != len(images) or not all(re.fullmatch(r"\d{1,20}", n) for n in numbers):
            raise UserError(
                f"seeds must be {len(images)} comma-separated integers, one for each image; "
                "connect the seeds output that goes with these images."
            )
        folder, name = os.path.split(filename_prefix)
        if name in ("", ".", ".."):  # ComfyUI counts no files of such a name, and overwrites them
            name = PREFIX
        sent = cls.hidden.extra_pnginfo  # by the client, so of any type
        extra = sent if isinstance(sent, dict) else {}
        saved = []
        for i, (image, number) in enumerate(zip(images, numbers, strict=True)):
            about = {**extra, SEED: int(number)}
            node = SimpleNamespace(
                hidden=SimpleNamespace(prompt=cls.hidden.prompt, extra_pnginfo=about)
            )
            prefix = os.path.join(folder, name).replace("%batch_num%", str(i))
            output = io.FolderType.output
            saved += ui.ImageSaveHelper.save_images(image[None], prefix, output, node)
        return io.NodeOutput(ui=ui.SavedImages(saved))


NODES = [Save]
