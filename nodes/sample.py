"""DiverseVAR Sampler."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..diversevar_core import job
from ..diversevar_core.conditions import Condition, Labels, Text
from ..diversevar_core.errors import UserError
from ..diversevar_core.job import PLAIN, Chain
from ..diversevar_core.methods.keep import Keep
from ..diversevar_core.methods.ssr_sar import DEFAULT_SIDES, DiverseVAR
from ..diversevar_core.models.family import Family
from ..diversevar_core.presets import CALIBRATION, Preset, preset_named
from ..diversevar_core.sampling.pairing import image_size, patch_of, schedule_of_size
from ..diversevar_core.schedule import Schedule
from ..diversevar_core.settings import Settings
from ..diversevar_core.text.encoder import check_length
from ..diversevar_core.vae.vae import VAE
from . import folders, host, inputs
from .encode import fit_mask
from .imagenet import LABEL
from .shown import short, shown

# what stock nodes put into a conditioning and VAR models do not support: entry -> what it asks for,
# and the value that asks for nothing
UNREAD = {
    "area": ("an area", None),
    "mask": ("a mask", None),
    "control": ("a ControlNet", None),
    "hooks": ("hooks", None),
    "gligen": ("GLIGEN boxes", None),
    "reference_latents": ("reference images", None),
    "concat_latent_image": ("an image to inpaint", None),
    "unclip_conditioning": ("an unCLIP image", None),
    "start_percent": ("a range of steps", 0.0),
    "end_percent": ("a range of steps", 1.0),
    "strength": ("a strength", 1.0),
}

ALIASES = [
    "var", "infinity", "ksampler", "seed variety", "same image every seed",
    "all seeds look the same", "all seeds look alike", "same face", "variation", "different images",
    "similar images", "identical images", "unique images", "all images look the same",
    "more variety", "more random", "random seed", "seed variation", "seed variance enhancer",
    "batch variety", "different poses", "same composition", "mode collapse",
    "next scale prediction", "diversity", "emoji", "text to image", "ssr", "sar",
    "种子多样性", "每个种子都一样", "图像相似", "变体", "不同的图像", "文生图", "表情",
    "種子多樣性", "每個種子都一樣", "圖像相似", "變體", "不同的圖像", "文生圖",
    "シードの多様性", "どのシードも同じ画像", "似た画像", "バリエーション", "違う画像",
    "テキストから画像", "絵文字",
]  # fmt: skip


class Sampler(io.ComfyNode):
    """DiverseVAR, arXiv 2511.17074."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSampler",
            display_name="DiverseVAR Sampler",
            category="DiverseVAR",
            description="Samples images with a VAR or Infinity model so that seeds really differ; "
            "preset sets how much.",
            search_aliases=ALIASES,
            accept_all_inputs=True,  # unknown choices too, which ``checked`` then names
            inputs=[
                inputs.model(),
                inputs.vae(),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt (Infinity) or an ImageNet Class (VAR)."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Infinity only: what to steer away from. Unconnected or empty uses "
                    "the model's own.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="From Empty Latent (VAR), which sets shape, size and number; or from "
                    "VAR VAE Encode, an image to vary (keep_side) or to inpaint (its mask).",
                ),
                inputs.methods(),
                inputs.preset(),
                inputs.seed(
                    "Image i uses seed + i (or the seed picked by starts); that seed alone "
                    "reproduces it. The node shows the seeds."
                ),
                inputs.sampling(4.0, 0.5),
                inputs.guidance_end(),
                io.Int.Input(
                    "keep_side",
                    default=0,
                    min=0,
                    max=128,
                    tooltip="Of an encoded image, keep the token maps up to this side: 1 or 2 keep "
                    "colours, 6 the layout, 12 most of it. 0 keeps none.",
                    advanced=True,
                ),
                inputs.exact_batch(),
            ],
            outputs=[
                io.Latent.Output(tooltip="For VAE Decode, or VAR VQ Decode."),
                io.String.Output(
                    display_name="seeds",
                    tooltip="The seed of each image; alone, with starts off, it makes the same "
                    "image again.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, preset=None, **others):
        return folders.calibrations() if CALIBRATION in str(preset) else None

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        latent_image,
        preset,
        seed,
        sampling,
        guidance_end,
        keep_side,
        exact_batch,
        negative=None,
        method=PLAIN,
    ) -> io.NodeOutput:
        network, core_vae = host.pair(model, vae)
        chosen = preset_of(preset, model)
        chain = chosen.chain(method)
        samples = latent_image["samples"]
        batch = len(samples)
        schedule = schedule_of_latent(network, core_vae, samples)
        settings = settings_of(network, sampling, chosen.guidance_start, guidance_end)
        condition = condition_of(network, positive, negative, batch, model.load_device)
        ready = partial(host.to_device, model, vae, schedule, settings, batch, chain)
        image, mask = bool(samples.any()), latent_image.get("noise_mask")
        if image:
            ready()
            if mask is not None:
                mask = fit_mask(mask, batch, *image_size(network, core_vae, schedule))
            features = samples[:1] if (samples == samples[:1]).all() else samples
            maps = core_vae.quantize_maps(features.to(model.load_device).float(), schedule)
            chain = chain.add(Keep(maps, keep_side, mask))
        elif keep_side > 0 or mask is not None:
            raise UserError(
                "keep_side and a mask need an image, and latent_image is empty; connect VAR VAE "
                "Encode to it."
            )
        offsets = latent_image.get("batch_index")  # of Latent From Batch, as KSampler reads it
        latent, seeds = draw(
            model, vae, condition, schedule, settings, seed, chain, exact_batch, ready, offsets
        )
        notes = said_of(positive)
        if image and keep_side == 0 and mask is None:
            notes.append("Only the size of the image was used: set keep_side, or give it a mask.")
        line = used(method, chain, settings, schedule, batch)
        box = shown(notes, line, f"seeds {short(seeds, seed)}")
        return io.NodeOutput(latent, ", ".join(map(str, seeds)), ui=box)


def used(connected: Chain, chain: Chain, settings: Settings, schedule: Schedule, batch: int) -> str:
    """One line with the settings of a run, and those that had no effect.

    chain: the connected methods, and those of the preset that they do not replace.
    """
    line = str(Preset.used(chain, settings.guidance_start))
    if connected.names:
        line += f" with {', '.join(connected.names)}"
    line += f"; cfg {settings.cfg[0]:g}, temperature {settings.tau[0]:g}"
    if chain.starts.candidates > 1 and batch == 1:
        line += "; starts had no effect on a single image"
    missing = {*DEFAULT_SIDES} - {scale.side for scale in schedule}
    spectral = [method for method in chain.methods if isinstance(method, DiverseVAR)]
    if missing and any(method.sides is None for method in spectral):
        sides = ", ".join(map(str, sorted(missing)))
        line += f"; SSR and SAR had no effect at side {sides}, which this image does not have"
    return line


def said_of(positive: list) -> list[str]:
    """Sentences on what of its text a small model draws."""
    return [extras[host.SAID] for _, extras in positive if host.SAID in extras]


def draw(
    model: ModelPatcher,
    vae: host.VARVAE,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    chain: Chain,
    exact_batch: bool,
    ready: Callable[[], object],
    offsets: Sequence[int] | None = None,
) -> tuple[dict[str, object], list[int]]:
    """``job.draw`` with ComfyUI's progress bar; returns a latent and the seeds."""
    bar = comfy.utils.ProgressBar(chain.starts.candidates if chain.starts else 1)
    drawn = job.draw(
        model.model,
        vae.core,
        condition,
        schedule,
        settings,
        seed,
        chain,
        offsets=offsets,
        exact_batch=exact_batch,
        ready=ready,
        progress=bar.update_absolute,
    )
    return host.watch(model, drawn.steps, drawn.maps, vae), drawn.seeds


def preset_of(preset: dict, model: ModelPatcher) -> Preset:
    """Read the preset widget; UserError for my calibration where the model has none."""
    if preset["preset"] == inputs.CUSTOM:
        return Preset(preset["guidance_start"], preset["starts"], preset["ssr"], preset["sar"])
    return preset_named(preset["preset"], model.get_attachment(host.FILE))


def schedule_of_latent(network: Family, core_vae: VAE, samples: torch.Tensor) -> Schedule:
    """The token maps of a latent (B, D, H, W); UserError if it is not this model's."""
    channels = core_vae.token_kind.channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise UserError(
            f"latent_image has {samples.shape[1]} channels and this model's have {channels} (in "
            f"{samples.ndim} dimensions, where images have 4); it comes from another kind of "
            "model: connect Empty Latent (VAR) or VAR VAE Encode."
        )
    patch = patch_of(network, core_vae)
    return schedule_of_size(network, samples.shape[2] / patch, samples.shape[3] / patch)


def settings_of(
    network: Family, sampling: dict, guidance_start: int, guidance_end: int
) -> Settings:
    """Read the sampling widget and the sides between which the model is guided."""
    settings = replace(network.defaults(), guidance_start=guidance_start, guidance_end=guidance_end)
    if sampling["sampling"] != inputs.CUSTOM:
        return settings
    return replace(
        settings,
        cfg=(sampling["cfg"],),
        tau=(sampling["temperature"],),
        top_k=sampling["top_k"],
        top_p=sampling["top_p"],
    )


def condition_of(
    network: Family, positive: list, negative: list | None, batch: int, device: torch.device
) -> Condition:
    """The condition of a batch from conditionings; UserError if the model cannot read them."""
    if network.reads is Text:
        return text(positive, negative, batch, device)
    features, extras = single(positive, "positive")
    if features.flatten().tolist() != [extras.get(LABEL)]:
        raise UserError(
            "This VAR model takes one class, no prompt and no mix of classes; connect an ImageNet "
            "Class (VAR)."
        )
    if negative is not None:
        raise UserError("This VAR model reads no negative prompt; disconnect negative.")
    return Labels(torch.full((batch,), extras[LABEL], device=device))


def text(positive: list, negative: list | None, batch: int, device: torch.device) -> Text:
    """The text of a batch from conditionings; an empty negative is the model's learned one."""
    features = single_prompt(positive, "positive")
    if len(features) == 1:
        raise UserError("The prompt is empty; write what the image should show.")
    steered = None if negative is None else single_prompt(negative, "negative")
    if steered is None or len(steered) == 1:  # only the end token
        return Text([features.to(device)] * batch)
    return Text([features.to(device)] * batch, [steered.to(device)] * batch)


def single_prompt(conditioning: list, socket: str) -> torch.Tensor:
    """The features (length, Ct) of a conditioning that is one prompt."""
    features, extras = single(conditioning, socket)
    if LABEL in extras:
        raise UserError("Infinity takes prompts, not classes; connect CLIP Text Encode.")
    check_length(len(features))
    return features.float()


def single(conditioning: list, socket: str) -> tuple[torch.Tensor, dict]:
    """The features (length, Ct) and extras of a single conditioning; UserError for others."""
    count = sum(len(features) for features, _ in conditioning)
    if count != 1:
        raise UserError(
            f"{socket} has {count} conditionings and a VAR model reads one; use Conditioning "
            "Concat or Average in place of Combine, or one class."
        )
    features, extras = conditioning[0]
    asks = [words for name, (words, off) in UNREAD.items() if extras.get(name) not in (None, off)]
    if asks:
        raise UserError(
            f"{socket} asks for {asks[0]}, and a VAR model reads only a prompt or a class, for the "
            "whole image and every step; remove the node that sets it."
        )
    return features[0], extras


NODES = [Sampler]
