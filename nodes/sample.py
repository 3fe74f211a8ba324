"""The sampler: a VAR model's pictures, with DiverseVAR's cure for sameness."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..diversevar_core.methods.keep import Keep
from ..diversevar_core.methods.starts import Starts
from ..diversevar_core.models.family import Family
from ..diversevar_core.models.pairing import check_pair, patch_of, picture_size, schedule_of_size
from ..diversevar_core.sampling import job
from ..diversevar_core.sampling.conditions import Condition, Labels, Text
from ..diversevar_core.sampling.presets import PRESETS, Preset, calibrated_preset
from ..diversevar_core.sampling.schedule import PIXELS, Schedule
from ..diversevar_core.sampling.settings import Settings, guidance
from ..diversevar_core.text.encoder import check_length
from ..diversevar_core.vae.tokenizer import Tokenizer
from . import host, inputs
from .class_label import LABEL
from .decode import check_latent
from .encode import fit_mask
from .load import VARModel
from .spectral import Method

# width:height as artists say it -> height / width as the schedules have it
ASPECTS = {
    "1:1 square": 1.0,
    "4:5 portrait": 1.25,
    "3:4 portrait": 1.333,
    "2:3 portrait": 1.5,
    "4:7 portrait": 1.75,
    "1:2 portrait": 2.0,
    "2:5 portrait": 2.5,
    "1:3 portrait": 3.0,
    "5:4 landscape": 0.8,
    "4:3 landscape": 0.75,
    "3:2 landscape": 0.666,
    "7:4 landscape": 0.571,
    "2:1 landscape": 0.5,
    "5:2 landscape": 0.4,
    "3:1 landscape": 0.333,
}
OWN = "the model's own"
CUSTOM, CALIBRATION = "custom", "my calibration"
# what stock nodes ask for by an entry of the conditioning, and no VAR model can follow
UNREAD = {
    "area": "an area",
    "mask": "a mask",
    "control": "a ControlNet",
    "hooks": "hooks",
}


class Sampler(io.ComfyNode):
    """DiverseVAR, arXiv 2511.17074."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARSampler",
            display_name="DiverseVAR Sampler",
            category="DiverseVAR",
            description="Makes pictures with a VAR or Infinity model. guide_from, starts and SSR "
            "and SAR (arXiv 2511.17074) make seeds differ; with guide_from 0, starts 1 and the "
            "others at 0 the model runs as published, bit for bit.",
            search_aliases=[
                "var",
                "infinity",
                "diverse",
                "ssr",
                "sar",
                "ksampler",
                "same face",
                "all seeds look alike",
            ],
            inputs=[
                VARModel.Input("model", tooltip="From Load VAR Model."),
                io.Vae.Input("vae", tooltip="From Load VAR Tokenizer: the one of this model."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt (Infinity) or a VAR Class Label (VAR)."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Infinity only: what to steer away from. Unconnected or empty uses "
                    "the model's own.",
                ),
                inputs.seed("Picture i of a batch is what seed + i gives alone."),
                inputs.batch_size("Pictures to make at once."),
                io.Combo.Input(
                    "aspect",
                    options=list(ASPECTS),
                    tooltip="Shape, width to height. VAR makes squares only.",
                ),
                io.Combo.Input(
                    "pixels",
                    options=[OWN, *PIXELS],
                    tooltip="Size of the picture in millions of pixels.",
                ),
                io.Float.Input(
                    "diversity",
                    display_name="ssr and sar",
                    default=0.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="For saved workflows: adds half of it to ssr and a quarter to sar.",
                    advanced=True,
                ),
                inputs.guide_from(
                    4,
                    "Follow the prompt from the token map of this side on: smaller maps, "
                    "which decide the idea, are drawn without cfg at temperature 1. 0 is the model "
                    "as published; 4 makes seeds differ much.",
                ),
                inputs.cfg(
                    "How closely to follow the prompt: lower is freer. 0 uses the model's "
                    "official value (4). Infinity: 1 is no guidance; VAR: it grows from coarse to "
                    "fine."
                ),
                inputs.tau(
                    "Temperature: lower is safer, higher is wilder. 0 uses the model's "
                    "official value (Infinity 0.5, VAR 1)."
                ),
                inputs.top_k(
                    "Draw from the k likeliest tokens (VAR). 0 uses the model's official "
                    "value (900)."
                ),
                inputs.top_p(
                    "Draw from the likeliest tokens that together reach this probability; "
                    "1 is all. 0 uses the model's official value (Infinity 0.97, VAR 0.95)."
                ),
                Method.Input(
                    "method",
                    optional=True,
                    tooltip="A diversity method, or several chained; each takes the place of its "
                    "like on this node.",
                ),
                io.Latent.Input(
                    "picture",
                    optional=True,
                    tooltip="From VAR Encode or VAE Encode: a picture to vary or to draw into, or "
                    "one for every picture of the batch. It decides the shape.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture is drawn again; elsewhere it keeps its tokens. "
                    "Takes the place of the mask in the latent.",
                ),
                io.Int.Input(
                    "keep_side",
                    optional=True,
                    default=0,
                    min=0,
                    max=128,
                    tooltip="Keep the picture's token maps up to this side. 1 or 2 keeps colours, "
                    "6 the layout, 12 most of it. 0 keeps none.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "preset",
                    optional=True,
                    options=[CUSTOM, *PRESETS, CALIBRATION],
                    default=CUSTOM,
                    tooltip="Sets guide_from, starts, ssr and sar. custom: as they stand on this "
                    "node. as published: all off. balanced: guide_from 4, which follows the prompt "
                    "as well as published. most different: besides, the most different of 256 "
                    "starts. SSR + SAR as in the paper: 0.5 and 0.25 at its places. my "
                    "calibration: what Calibrate Diversity found for this model.",
                ),
                io.Int.Input(
                    "starts",
                    optional=True,
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Start so many seeds, which is quick, and finish the batch_size of "
                    "them that differ most. 1 is off; a batch of 1 has nothing to choose.",
                ),
                io.Float.Input(
                    "ssr",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="DiverseVAR's soft suppression at sides 4 and 6: how strongly to "
                    "loosen the composition that all seeds share. 0 is off.",
                ),
                io.Float.Input(
                    "sar",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="DiverseVAR's soft amplification at sides 4 and 6: how strongly to "
                    "push what the seed makes of it. 0 is off.",
                ),
                inputs.guide_to(),
                inputs.exact_batch(),
            ],
            outputs=[
                io.Latent.Output(tooltip="Decode it with VAE Decode or VAR Decode."),
                io.String.Output(
                    display_name="seeds",
                    tooltip="The seed of every picture: each alone, with starts 1, makes it again.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        positive,
        seed,
        batch_size,
        aspect,
        pixels,
        diversity,
        guide_from,
        cfg,
        tau,
        top_k,
        top_p,
        negative=None,
        method=None,
        picture=None,
        mask=None,
        keep_side=0,
        preset=CUSTOM,
        starts=1,
        ssr=0.0,
        sar=0.0,
        guide_to=0,
        exact_batch=False,
    ) -> io.NodeOutput:
        network = model.model
        if network.edits:
            raise ValueError(
                "This model edits pictures; use Edit by Instruction in place of the sampler."
            )
        custom = Preset(guide_from, starts, ssr + 0.5 * diversity, sar + 0.25 * diversity)
        chosen = preset_of(preset, custom, model)
        methods = [*chosen.methods(method or ())]
        tokenizer = host.tokenizer_of(vae)
        check_pair(network, tokenizer)
        if picture is None:
            if mask is not None or keep_side > 0:
                raise ValueError("mask and keep_side need a picture; connect VAR Encode to it.")
            schedule = network.schedule(ASPECTS[aspect], None if pixels == OWN else pixels)
        else:
            schedule = schedule_of_latent(network, tokenizer, picture["samples"], batch_size)
        settings = settings_of(network, cfg, tau, top_k, top_p, chosen.guide_from, guide_to)
        guided = any(g != 1 for g, _ in guidance(settings, schedule))
        sizes = schedule, batch_size, guided
        ready = partial(host.to_device, model, vae, *sizes, methods=methods)
        device = ready()
        condition = condition_of(network, positive, negative, batch_size, device)
        if picture is not None:
            mask = picture.get("noise_mask") if mask is None else mask
            if mask is not None:
                mask = fit_mask(mask, batch_size, *picture_size(network, tokenizer, schedule))
            features = picture["samples"].to(device).float()
            methods.append(Keep(tokenizer.quantize_maps(features, schedule), keep_side, mask))
        how = condition, schedule, settings, seed, methods, exact_batch
        samples, seeds = draw(model, vae, *how, ready)
        return io.NodeOutput({"samples": samples}, ", ".join(map(str, seeds)))


def draw(
    model: ModelPatcher,
    vae: host.TokenizerVAE,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    methods: Sequence[Method],
    exact_batch: bool,
    ready: Callable[[], object],
) -> tuple[torch.Tensor, list[int]]:
    """``job.draw`` with the host's progress; f_hat (B, D, H, W), and the seed of every picture."""
    starts = next((method for method in methods if isinstance(method, Starts)), Starts(1))
    bar = comfy.utils.ProgressBar(starts.candidates)
    how = (model.model, vae.tokenizer, condition, schedule, settings, seed, methods)
    options = {"exact_batch": exact_batch, "ready": ready, "progress": bar.update_absolute}
    drawn = job.draw(*how, **options)
    return host.watch(model, drawn.steps, drawn.maps, vae), drawn.seeds


def preset_of(name: str, custom: Preset, model: ModelPatcher) -> Preset:
    """The preset of a name; ValueError where the model was not calibrated."""
    if name == CALIBRATION:
        return calibrated_preset(model.get_attachment(host.FILE))
    return custom if name == CUSTOM else PRESETS[name]


def schedule_of_latent(
    network: Family, tokenizer: Tokenizer, samples: torch.Tensor, batch: int
) -> Schedule:
    """The token maps of an encoded picture (1 or B, D, H, W)."""
    channels = tokenizer.token_kind.channels
    check_latent(samples)
    if samples.shape[1] != channels:
        raise ValueError(
            f"picture has {samples.shape[1]} channels and this model's have {channels}; it comes "
            "from another kind of model: connect VAR Encode."
        )
    if len(samples) not in (1, batch):
        raise ValueError(
            f"picture holds {len(samples)} pictures and batch_size is {batch}; give one picture, "
            "or one for each of the batch."
        )
    patch = patch_of(network, tokenizer)
    return schedule_of_size(network, samples.shape[2] / patch, samples.shape[3] / patch)


def settings_of(
    network: Family,
    cfg: float,
    tau: float,
    top_k: int,
    top_p: float,
    guide_from: int,
    guide_to: int = 0,
) -> Settings:
    """The sampler's numbers, with the model's official one wherever the widget says 0."""
    own = network.defaults()
    return replace(
        own,
        cfg=(cfg,) if cfg else own.cfg,
        tau=(tau,) if tau else own.tau,
        top_k=top_k or own.top_k,
        top_p=top_p or own.top_p,
        guide_from=guide_from,
        guide_to=guide_to,
    )


def condition_of(
    network: Family,
    positive: list,
    negative: list | None,
    batch: int,
    device: torch.device,
) -> Condition:
    """What every picture shows, as the model reads it."""
    if network.reads is Text:
        return text(positive, negative, batch, device)
    features, extras = one_of(positive, "positive")
    if LABEL not in extras:
        raise ValueError("This VAR model paints classes, not prompts; connect a VAR Class Label.")
    if features.flatten().tolist() != [extras[LABEL]]:
        raise ValueError(
            "positive mixes classes, and a VAR model paints one; connect a VAR Class Label."
        )
    if negative is not None:
        raise ValueError("This VAR model reads no negative prompt; disconnect negative.")
    return Labels(torch.full((batch,), extras[LABEL], device=device))


def text(positive: list, negative: list | None, batch: int, device: torch.device) -> Text:
    """The text of every picture, from conditionings; an empty negative is the model's own."""
    features = one_prompt(positive, "positive")
    if len(features) == 1:
        raise ValueError("The prompt is empty; write what the picture should show.")
    away = None if negative is None else one_prompt(negative, "negative")
    if away is not None and len(away) == 1:  # nothing but the end token
        away = None
    return Text([features.to(device)] * batch, None if away is None else [away.to(device)] * batch)


def one_prompt(conditioning: list, socket: str) -> torch.Tensor:
    """The features (length, Ct) of a conditioning that is one prompt."""
    features, extras = one_of(conditioning, socket)
    if LABEL in extras:
        raise ValueError(
            "Infinity paints prompts, not classes; connect VAR Encode Text or CLIP Text Encode."
        )
    check_length(len(features))
    return features.float()


def one_of(conditioning: list, socket: str) -> tuple[torch.Tensor, dict]:
    """The features (length, Ct) and extras of a conditioning that is one, for the whole picture."""
    count = sum(len(features) for features, _ in conditioning)
    if count != 1:
        raise ValueError(
            f"{socket} has {count} conditionings and a VAR model reads one; use Conditioning "
            "Concat or Average in place of Combine, or one class."
        )
    features, extras = conditioning[0]
    asks = [words for name, words in UNREAD.items() if extras.get(name) is not None]
    if extras.get("start_percent", 0.0) > 0 or extras.get("end_percent", 1.0) < 1:
        asks.append("a range of steps")
    if asks:
        raise ValueError(
            f"{socket} asks for {asks[0]}, and a VAR model paints the whole picture at every "
            "step; remove the node that sets it."
        )
    return features[0], extras


NODES = [Sampler]
