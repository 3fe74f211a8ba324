"""The pack's nodes, one file per thing an artist does."""

from comfy_api.latest import ComfyExtension, io

from . import (
    adaptive_scaling,
    calibrate,
    class_label,
    compare,
    decode,
    edit,
    encode,
    encode_text,
    fastvar,
    folders,
    load,
    lora,
    measure,
    path_search,
    repulsion,
    sample,
    save,
    scalekv,
    spectral,
    spectrum,
    starts,
    text_noise,
    travel,
)
from .checks import checked

NODES = [
    *load.NODES,
    *lora.NODES,
    *encode_text.NODES,
    *class_label.NODES,
    *sample.NODES,
    *edit.NODES,
    *spectral.NODES,
    *starts.NODES,
    *repulsion.NODES,
    *adaptive_scaling.NODES,
    *path_search.NODES,
    *text_noise.NODES,
    *travel.NODES,
    *fastvar.NODES,
    *scalekv.NODES,
    *calibrate.NODES,
    *decode.NODES,
    *encode.NODES,
    *compare.NODES,
    *save.NODES,
    *measure.NODES,
    *spectrum.NODES,
]


class DiverseVARExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def on_load(self) -> None:
        folders.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [checked(node) for node in NODES]


async def comfy_entrypoint() -> DiverseVARExtension:
    return DiverseVARExtension()
