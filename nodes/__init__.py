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

MODULES = [
    load, lora, encode_prompts, imagenet, empty_latent, sample, edit, ssr_sar, diverse_seeds,
    repulsion, adaptive_scaling, path_search, text_noise, travel, fastvar, scalekv, calibrate,
    decode, encode, save, contact_sheet, pick, measure, spectrum,
]  # fmt: skip
NODES = [node for module in MODULES for node in module.NODES]


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
