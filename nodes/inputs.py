"""Inputs that several nodes share, the pack's own socket types, and images from sockets."""

import torch
from comfy_api.latest import io

from ..diversevar_core.errors import UserError
from ..diversevar_core.presets import CALIBRATION, PRESETS

VARModel = io.Custom("DIVERSEVAR_MODEL")
Method = io.Custom("DIVERSEVAR_METHOD")
CUSTOM = "custom"


def model(tooltip: str = "From Load VAR Model.") -> io.Input:
    """A VAR, Infinity or VAREdit transformer."""
    return VARModel.Input("model", tooltip=tooltip)


def vae() -> io.Input:
    """The model's VAE."""
    return io.Vae.Input("vae", tooltip="From Load VAR VAE: the one of this model.")


def clip_vision() -> io.ClipVision.Input:
    """A model whose features compare images."""
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="Compares what the images show; without it, their pixels.",
    )


def methods() -> io.Input:
    """The input of every method node, so that methods can be chained."""
    return Method.Input(
        "method",
        optional=True,
        tooltip="More methods to combine, one of each kind; their order does not matter.",
    )


def method_output() -> io.Output:
    """The output of every method node: the chain with the node's method."""
    return Method.Output(
        display_name="method", tooltip="For the method input of the sampler or of VAR Edit Image."
    )


def seed(tooltip: str) -> io.Int.Input:
    """The seed of the first image."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip
    )


def batch_size() -> io.Int.Input:
    """The number of images."""
    return io.Int.Input(
        "batch_size", default=1, min=1, max=64, tooltip="How many images to make at once."
    )


def custom(numbers: list[io.Input]) -> io.DynamicCombo.Option:
    """The option with one's own numbers; those that a client leaves out have their defaults."""
    for number in numbers:
        number.optional = True
    return io.DynamicCombo.Option(CUSTOM, numbers)


def preset() -> io.DynamicCombo.Input:
    """The preset; custom shows its numbers as inputs."""
    numbers = [
        guidance_start(4),
        io.Int.Input(
            "starts",
            default=64,
            min=1,
            max=1024,
            tooltip="Start this many seeds, which is quick, and finish only those that differ "
            "most, as many as the batch has images. 1 is off; most different starts 256.",
        ),
        ssr(0.0),
        sar(0.0),
    ]
    return io.DynamicCombo.Input(
        "preset",
        options=[
            *(io.DynamicCombo.Option(name, []) for name in (*PRESETS, CALIBRATION)),
            custom(numbers),
        ],
        tooltip="How different the images are from seed to seed. Try balanced, then most "
        "different; custom shows the numbers.",
    )


def guidance_start(default: int, advanced: bool = False) -> io.Int.Input:
    """The side of the first guided token map; 0 guides all."""
    return io.Int.Input(
        "guidance_start",
        default=default,
        min=0,
        max=128,
        tooltip="Follow the prompt with cfg from the token map of this side on: smaller maps, "
        "which decide the idea, are drawn without cfg at temperature 1. 0 is the model as "
        "published, 4 is typical.",
        advanced=advanced or None,
    )


def guidance_end() -> io.Int.Input:
    """The side of the last guided token map; 0 guides all."""
    return io.Int.Input(
        "guidance_end",
        default=0,
        min=0,
        max=128,
        tooltip="Follow the prompt with cfg up to the token map of this side only. 0 is the model "
        "as published; 24 saves about 40 % of the time at a million pixels.",
        advanced=True,
    )


def ssr(default: float) -> io.Float.Input:
    """Strength of soft suppression."""
    return io.Float.Input(
        "ssr",
        default=default,
        min=0.0,
        max=8.0,
        step=0.005,
        tooltip="Soft suppression (SSR): how strongly to weaken the largest singular values of "
        "what the model reads at early token maps, where all seeds share a layout. 0 is off; "
        "0.25 is typical.",
    )


def sar(default: float) -> io.Float.Input:
    """Strength of soft amplification."""
    return io.Float.Input(
        "sar",
        default=default,
        min=0.0,
        max=4.0,
        step=0.005,  # the page shows as many decimals, and the paper's sar is 0.125
        tooltip="Soft amplification (SAR): how strongly to strengthen the largest singular values "
        "of what the model puts out at the same token maps. 0 is off; 0.125 is typical.",
    )


def sampling(cfg: float, temperature: float) -> io.DynamicCombo.Input:
    """The model's official sampling settings, or custom ones."""
    return io.DynamicCombo.Input(
        "sampling",
        options=[
            io.DynamicCombo.Option(f"official (cfg {cfg:g})", []),
            custom(
                [
                    io.Float.Input(
                        "cfg",
                        default=cfg,
                        min=0.0,
                        max=30.0,
                        step=0.1,
                        tooltip="How closely to follow the prompt: lower is freer. 1 is no "
                        "guidance (VAR: 0, as it grows from the first token map to the last).",
                    ),
                    io.Float.Input(
                        "temperature",
                        default=temperature,
                        min=0.01,
                        max=5.0,
                        step=0.05,
                        tooltip="Lower is more predictable, higher more varied. Official: "
                        "Infinity 0.5, VAR 1, VAREdit 0.1.",
                    ),
                    io.Float.Input(
                        "top_p",
                        default=0.97,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Draw from the likeliest tokens that together reach this "
                        "probability; 0 and 1 are all. Official: Infinity 0.97, VAR 0.95.",
                    ),
                    io.Int.Input(
                        "top_k",
                        default=900,
                        min=0,
                        max=2**16,
                        tooltip="Draw from the k likeliest tokens, of 4096 (VAR); Infinity's are "
                        "bits and have two values. 0 is all. Official: 900.",
                    ),
                ]
            ),
        ],
        tooltip="The model's official settings, or your own. After a run the node shows what was "
        "used.",
    )


def exact_batch() -> io.Boolean.Input:
    """Whether the images of a batch are computed one by one."""
    return io.Boolean.Input(
        "exact_batch",
        default=False,
        tooltip="Compute the images of a batch one by one, so that each is bit for bit what its "
        "seed gives alone. Batching is faster; rounding may occasionally flip a token.",
        advanced=True,
    )


def rgb(socket: str, images: torch.Tensor) -> torch.Tensor:
    """ComfyUI's images (B, H, W, C) as RGB without alpha, (B, 3, H, W); grey is repeated."""
    channels = images.shape[-1]
    if channels not in (1, 3, 4):
        raise UserError(
            f"{socket} has {channels} channels, and an image has 1 (grey), 3 (colour) or 4 (with "
            "transparency); connect an image."
        )
    return images[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)
