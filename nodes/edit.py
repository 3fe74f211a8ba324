"""Picture and instruction -> the picture, edited."""

from dataclasses import replace
from functools import partial

import torch
from comfy_api.latest import io

from ..diversevar_core.images import feathered, into_square, out_of_square, to_pil
from ..diversevar_core.models.pairing import check_pair, picture_size
from ..diversevar_core.sampling.settings import guidance
from . import host, inputs
from .encode import fit_mask
from .load import VARModel
from .sample import draw, settings_of, text
from .spectral import Method


class Edit(io.ComfyNode):
    """VAREdit, arXiv 2508.15772."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVAREdit",
            display_name="Edit by Instruction",
            category="DiverseVAR",
            description="Changes a picture as an instruction says, with an editing model "
            "(VAREdit), and keeps its size. A mask limits where.",
            search_aliases=["var", "varedit", "instruct", "edit image", "inpaint", "img2img"],
            inputs=[
                VARModel.Input("model", tooltip="An editing model, from Load VAR Model."),
                io.Vae.Input("vae", tooltip="From Load VAR Tokenizer: the one of this model."),
                io.Conditioning.Input(
                    "positive", tooltip="The instruction: what to change, as to a person."
                ),
                io.Image.Input(
                    "picture", tooltip="What to edit: one picture, or as many as batch_size."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to steer away from. Unconnected or empty uses the model's own.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change; outside it keeps its pixels.",
                ),
                Method.Input(
                    "method",
                    optional=True,
                    tooltip="From SSR and SAR (advanced): makes the edits of a batch differ more.",
                ),
                inputs.seed("Edit i of a batch is what seed + i gives alone."),
                inputs.batch_size("Edits to make at once, each with a seed of its own."),
                inputs.cfg(
                    "How closely to follow the instruction: lower changes less. 0 uses the "
                    "model's official value (3); 1 is no guidance."
                ),
                inputs.tau(
                    "Temperature: higher makes seeds differ more. 0 uses the model's "
                    "official value (0.1)."
                ),
                inputs.guide_from(
                    0,
                    "Follow the instruction from the token map of this side on: smaller "
                    "maps are drawn without cfg at temperature 1. 0 is the model as published; 4 "
                    "makes seeds differ most.",
                ),
                inputs.top_k(
                    "Draw from the k likeliest values of a bit, of which there are two. 0 "
                    "uses the model's official value (900)."
                ),
                inputs.top_p(
                    "Draw from the likeliest values that together reach this probability; "
                    "1 is all. 0 uses the model's official value (0.97)."
                ),
                inputs.guide_to(),
                inputs.exact_batch(),
            ],
            outputs=[
                io.Image.Output(tooltip="The edits, in the picture's own size."),
                io.Latent.Output(
                    tooltip="The edits before the mask, in the model's square, with the white "
                    "that fills it up."
                ),
                io.String.Output(display_name="seeds", tooltip="The seed of every edit."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        picture,
        seed,
        batch_size,
        cfg,
        tau,
        guide_from,
        top_k,
        top_p,
        negative=None,
        mask=None,
        method=None,
        guide_to=0,
        exact_batch=False,
    ) -> io.NodeOutput:
        network, tokenizer = model.model, host.tokenizer_of(vae)
        if not network.edits:
            raise ValueError(
                "This model cannot edit a picture; load an editing model (VAREdit), or, if it is "
                "one, set task to edit in Load VAR Model."
            )
        check_pair(network, tokenizer)
        if len(picture) not in (1, batch_size):
            raise ValueError(
                f"picture is a batch of {len(picture)} and batch_size is {batch_size}; connect "
                "one, or as many as batch_size."
            )
        picture, schedule = inputs.rgb("picture", picture).cpu().float(), network.schedule()
        height, width = picture.shape[2:]
        if mask is not None:
            mask = feathered(fit_mask(mask, batch_size, height, width)[:, None].cpu())
        _, side = picture_size(network, tokenizer, schedule)
        squares = torch.cat([into_square(to_pil(image), side) for image in picture])
        features = vae.encode((squares.movedim(1, -1) + 1) / 2)

        settings = settings_of(network, cfg, tau, top_k, top_p, guide_from, guide_to)
        guided = any(g != 1 for g, _ in guidance(settings, schedule))
        methods = method or ()
        sizes = schedule, batch_size, guided, len(features)
        ready = partial(host.to_device, model, vae, *sizes, methods)
        device = ready()
        condition = text(positive, negative, batch_size, device)
        condition = replace(condition, source=features.to(device).float())
        how = condition, schedule, settings, seed, methods, exact_batch
        f_hat, seeds = draw(model, vae, *how, ready)

        edited = out_of_square(vae.decode(f_hat).movedim(-1, 1).cpu(), width, height)
        if mask is not None:
            edited = torch.lerp(picture, edited, mask)
        edited, seeds = edited.movedim(1, -1), ", ".join(map(str, seeds))
        return io.NodeOutput(edited, {"samples": f_hat}, seeds)


NODES = [Edit]
