"""Prompts in API format that tests of the host begin with."""

import copy

import numpy as np
from comfy_host import ROOT

MODELS = {"infinity": "infinity_tiny.safetensors", "var": "var_d16.pth", "emoji": "emoji-small"}
VAES = MODELS | {"var": "vae_ch160v4096z32.pth"}
TEXT_ENCODERS = {"infinity": "t5_tiny", "emoji": "emoji-small"}
PIXELS = {"infinity": 256, "var": 96, "emoji": 128}  # along a side
HIGH, WIDE = 60, 96  # the image's own size; the model's square is 256
NAMES = (ROOT / "nodes" / "imagenet_classes.txt").read_text().splitlines()
CLASSES = [f"{number} {name}" for number, name in enumerate(NAMES)]
CUSTOM_PRESET = {"guidance_start": 4, "starts": 1, "ssr": 0.0, "sar": 0.0}
CUSTOM_SAMPLING = {"cfg": 4.0, "temperature": 0.5, "top_p": 0.97, "top_k": 900}


def graph(
    family: str, prompt: str = "a red apple", batch_size: int = 1, size=None, **sampler
) -> dict:
    """A text-to-image (infinity) or class-to-image (var) prompt; the rest stays at its default.

    size: inputs of Empty Latent. sampler: inputs of the sampler; numbers of a preset or of sampling
    make them custom.
    """
    models = {"model": ["model", 0], "vae": ["vae", 0]}
    chosen = {"preset": CUSTOM_PRESET, "sampling": CUSTOM_SAMPLING}
    inputs = {"positive": ["text", 0], "latent_image": ["empty", 0]} | dotted(sampler, chosen)
    if "preset" not in inputs:
        inputs |= dotted(CUSTOM_PRESET, chosen)
    nodes = {
        "model": ("DiverseVARLoadModel", {"model_name": MODELS[family]}),
        "vae": ("DiverseVARLoadVAE", {"vae_name": VAES[family]}),
        "empty": ("DiverseVAREmptyLatent", {**models, "batch_size": batch_size, **(size or {})}),
        "sampler": ("DiverseVARSampler", models | inputs),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "save": ("PreviewImage", {"images": ["decode", 0]}),
    }
    if family == "var":
        nodes["text"] = ("DiverseVARImageNetClass", {"class_name": CLASSES[3]})
    else:
        nodes["clip"] = ("DiverseVARLoadCLIP", {"clip_name": TEXT_ENCODERS[family]})
        nodes["text"] = ("CLIPTextEncode", {"clip": ["clip", 0], "text": prompt})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def dotted(inputs: dict, chosen: dict[str, dict]) -> dict:
    """A node's inputs; numbers below a choice make it custom, and have its name in front."""
    out = dict(inputs)
    for choice, numbers in chosen.items():
        if numbers.keys() & inputs.keys():
            out = {name: value for name, value in out.items() if name not in numbers}
            own = {f"{choice}.{name}": inputs.get(name, v) for name, v in numbers.items()}
            out |= {choice: "custom"} | own
    return out


def edit_graph(**edit) -> dict:
    """A prompt that edits an image; the rest stays at its default."""
    models = {"model": ["model", 0], "vae": ["vae", 0]}
    chosen = {"sampling": CUSTOM_SAMPLING | {"cfg": 3.0, "temperature": 0.1}}
    inputs = {"positive": ["text", 0], "image": ["image", 0]} | dotted(edit, chosen)
    text = {"clip": ["clip", 0], "text": "a red apple on the moon"}
    nodes = {
        "model": ("DiverseVARLoadModel", {"model_name": "edit_tiny.pth"}),
        "vae": ("DiverseVARLoadVAE", {"vae_name": "infinity_tiny.safetensors"}),
        "clip": ("DiverseVARLoadCLIP", {"clip_name": "t5_tiny"}),
        "text": ("CLIPTextEncode", text),
        "image": ("EmptyImage", {"width": WIDE, "height": HIGH, "color": 0x4080C0}),
        "edit": ("DiverseVAREdit", models | inputs),
        "save": ("PreviewImage", {"images": ["edit", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def encoded(family: str, **sampler) -> dict:
    """A prompt whose sampler varies an image of its size, red on the left, blue on the right."""
    prompt, side = graph(family, latent_image=["encode", 0], **sampler), PIXELS[family]
    for name, color in (("image", 0xC04020), ("blue", 0x2040C0)):
        inputs = {"width": side, "height": side, "color": color}
        prompt[name] = {"class_type": "EmptyImage", "inputs": inputs}
    both = {"destination": ["image", 0], "source": ["blue", 0], "x": side // 2, "y": 0}
    both |= {"resize_source": False}
    prompt["both"] = {"class_type": "ImageCompositeMasked", "inputs": both}
    inputs = {"pixels": ["both", 0], "vae": ["vae", 0], "model": ["model", 0]}
    prompt["encode"] = {"class_type": "DiverseVAREncode", "inputs": inputs}
    return prompt


def on_small_model(template: dict, prompt: str = "red apple", seed: int = 0) -> dict:
    """A template for any checkpoint with what the small diffusion model needs; the rest stays.

    The model of training/flow.py is a transformer only: text encoder and VAE are emoji-small's.
    """
    nodes = copy.deepcopy(template)
    (loader,) = (n for n, node in nodes.items() if node["class_type"] == "CheckpointLoaderSimple")
    included = {(loader, 1): ["clip", 0], (loader, 2): ["vae", 0]}
    settings = {
        "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 8},
        "KSampler": {"seed": seed, "steps": 8, "cfg": 4.0, "scheduler": "simple"},
    }
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = included.get(tuple(value), value)
        node["inputs"] |= settings.get(node["class_type"], {})
        if node["_meta"]["title"] == "Prompt":
            node["inputs"]["text"] = prompt
    clip = {"clip_name": "emoji_unlisted"}
    nodes["clip"] = {"class_type": "DiverseVARLoadCLIP", "inputs": clip}
    nodes["vae"] = {"class_type": "DiverseVARLoadVAE", "inputs": {"vae_name": "emoji-small"}}
    return nodes


def pixels(outcome) -> list[np.ndarray]:
    assert outcome.error is None
    return [np.asarray(image) for image in outcome.images]
