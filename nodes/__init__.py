"""The pack's nodes."""

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from . import (
    adaptive_scaling,
    calibrate,
    contact_sheet,
    decode,
    diverse_seeds,
    edit,
    empty_latent,
    encode,
    encode_prompts,
    fastvar,
    folders,
    imagenet,
    load,
    lora,
    measure,
    path_search,
    pick,
    repulsion,
    sample,
    save,
    scalekv,
    spectrum,
    ssr_sar,
    text_noise,
    travel,
)
from .checks import checked, without_missing_nodes

NODES = [
    *load.NODES,
    *lora.NODES,
    *encode_prompts.NODES,
    *imagenet.NODES,
    *empty_latent.NODES,
    *sample.NODES,
    *edit.NODES,
    *ssr_sar.NODES,
    *diverse_seeds.NODES,
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
    *save.NODES,
    *contact_sheet.NODES,
    *pick.NODES,
    *measure.NODES,
    *spectrum.NODES,
]


class DiverseVARExtension(ComfyExtension):
    """The pack's extension, which ComfyUI asks for its nodes."""

    async def on_load(self) -> None:
        folders.register()
        if hasattr(PromptServer, "instance"):  # a script may use ComfyUI without its server
            PromptServer.instance.add_on_prompt_handler(without_missing_nodes(NODES))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [checked(node) for node in NODES]


async def comfy_entrypoint() -> DiverseVARExtension:
    return DiverseVARExtension()
