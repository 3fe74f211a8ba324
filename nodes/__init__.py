"""The pack's nodes, one file per thing an artist does."""

from comfy_api.latest import ComfyExtension, io

from . import (
    class_label,
    compare,
    decode,
    edit,
    encode,
    encode_text,
    folders,
    load,
    lora,
    measure,
    sample,
    spectral,
    spectrum,
)

NODES = [
    *load.NODES,
    *lora.NODES,
    *encode_text.NODES,
    *class_label.NODES,
    *sample.NODES,
    *edit.NODES,
    *spectral.NODES,
    *decode.NODES,
    *encode.NODES,
    *compare.NODES,
    *measure.NODES,
    *spectrum.NODES,
]


class DiverseVARExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def on_load(self) -> None:
        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DiverseVARExtension:
    return DiverseVARExtension()
