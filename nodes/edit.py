"""VAR Edit Image: an image and an instruction -> the edited image."""

from dataclasses import replace
from functools import partial

import torch
from comfy_api.latest import io

from ..diversevar_core.errors import UserError
from ..diversevar_core.images import feathered, into_square, out_of_square, to_pil
from ..diversevar_core.job import PLAIN
from ..diversevar_core.sampling.pairing import image_size
from . import host, inputs
from .encode import fit_mask
from .sample import draw, said_of, settings_of, text
from .shown import short, shown

ALIASES = [
    "var", "varedit", "edit image", "image edit", "edit by instruction", "edit by text",
    "instruct", "inpaint", "img2img",
    "编辑图像", "图像编辑",
    "編輯圖像", "圖像編輯",
    "画像編集", "画像を編集",
]  # fmt: skip


class Edit(io.ComfyNode):
    """VAREdit, arXiv 2508.15772."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREdit",
            display_name="VAR Edit Image",
            category="DiverseVAR",
            description="Edits an image by instruction with an editing model (VAREdit) and keeps "
            "its size. A mask limits where.",
            search_aliases=ALIASES,
            accept_all_inputs=True,  # unknown choices too, which ``checked`` then names
            inputs=[
                inputs.model("From Load VAR Model: an editing model."),
                inputs.vae(),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The instruction: say what to change, as you would to a person.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to steer away from. Unconnected or empty uses the model's own.",
                ),
                io.Image.Input(
                    "image", tooltip="What to edit: one image, or as many as batch_size."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the image may change; outside it keeps its pixels.",
                ),
                inputs.methods(),
                inputs.seed("Image i uses seed + i; that seed alone reproduces it."),
                inputs.batch_size(),
                inputs.sampling(3.0, 0.1),
                inputs.guidance_start(0, advanced=True),
                inputs.guidance_end(),
                inputs.exact_batch(),
            ],
            outputs=[
                io.Image.Output(tooltip="The edits, in the image's own size."),
                io.Latent.Output(
                    tooltip="The edits before the mask, as the model's square, padded with white."
                ),
                io.String.Output(
                    display_name="seeds",
                    tooltip="The seed of every edit, for Save Image with Seeds.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        image,
        seed,
        batch_size,
        sampling,
        guidance_start,
        guidance_end,
        exact_batch,
        negative=None,
        mask=None,
        method=PLAIN,
    ) -> io.NodeOutput:
        if not model.model.edits:
            raise UserError(
                "This model cannot edit an image; load an editing model (VAREdit), or, if it is "
                "one, set task to edit in Load VAR Model."
            )
        network, core_vae = host.pair(model, vae)
        if len(image) not in (1, batch_size):
            raise UserError(
                f"image is a batch of {len(image)} and batch_size is {batch_size}; connect "
                "one, or as many as batch_size."
            )
        image, schedule = inputs.rgb("image", image).cpu().float(), network.schedule()
        height, width = image.shape[2:]
        if mask is not None:
            mask = feathered(fit_mask(mask, batch_size, height, width)[:, None].cpu())
        _, side = image_size(network, core_vae, schedule)
        squares = torch.cat([into_square(to_pil(source), side) for source in image])
        features = vae.encode((squares.movedim(1, -1) + 1) / 2)

        settings = settings_of(network, sampling, guidance_start, guidance_end)
        condition = text(positive, negative, batch_size, model.load_device)
        condition = replace(condition, source=features.to(model.load_device).float())
        ready = partial(
            host.to_device, model, vae, schedule, settings, batch_size, method, len(features)
        )
        latent, seeds = draw(
            model, vae, condition, schedule, settings, seed, method, exact_batch, ready
        )

        edited = out_of_square(vae.decode(latent["samples"]).movedim(-1, 1).cpu(), width, height)
        if mask is not None:
            edited = torch.lerp(image, edited, mask)
        box = shown(said_of(positive), f"seeds {short(seeds, seed)}")
        return io.NodeOutput(edited.movedim(1, -1), latent, ", ".join(map(str, seeds)), ui=box)


NODES = [Edit]
