"""Prompts in API format that tests of the host begin with."""

import numpy as np

MODELS = {"infinity": "infinity_tiny.safetensors", "var": "var_d16.pth", "emoji": "emoji"}
TOKENIZERS = MODELS | {"var": "vae_ch160v4096z32.pth"}
TEXT_ENCODERS = {"infinity": "t5_tiny", "emoji": "emoji"}
PIXELS = {"infinity": 256, "var": 96, "emoji": 64}  # along a side
HIGH, WIDE = 60, 96  # the picture's own size; the model's square is 256


def graph(family: str, prompt: str = "a red apple", **sampler) -> dict:
    """A text-to-image (infinity) or class-to-image (var) prompt; the rest stays at its default."""
    nodes = {
        "model": ("DiverseVARLoadModel", {"model_name": MODELS[family]}),
        "vae": ("DiverseVARLoadTokenizer", {"vae_name": TOKENIZERS[family]}),
        "sampler": (
            "DiverseVARSampler",
            {"model": ["model", 0], "vae": ["vae", 0], "positive": ["text", 0], **sampler},
        ),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "save": ("PreviewImage", {"images": ["decode", 0]}),
    }
    if family == "var":
        nodes["text"] = ("DiverseVARClassLabel", {"label": 3})
    else:
        nodes["clip"] = ("DiverseVARLoadTextEncoder", {"text_encoder_name": TEXT_ENCODERS[family]})
        inputs = {"clip": ["clip", 0], "prompt": prompt, "negative": ""}
        nodes["text"] = ("DiverseVAREncodeText", inputs)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def edit_graph(**edit) -> dict:
    """A prompt that edits a picture; the rest stays at its default."""
    image = {"width": WIDE, "height": HIGH, "color": 0x4080C0}
    text = {"clip": ["clip", 0], "prompt": "a red apple on the moon", "negative": ""}
    inputs = {"model": ["model", 0], "vae": ["vae", 0], "positive": ["text", 0]}
    nodes = {
        "model": ("DiverseVARLoadModel", {"model_name": "edit_tiny.pth"}),
        "vae": ("DiverseVARLoadTokenizer", {"vae_name": "infinity_tiny.safetensors"}),
        "clip": ("DiverseVARLoadTextEncoder", {"text_encoder_name": "t5_tiny"}),
        "text": ("DiverseVAREncodeText", text),
        "image": ("EmptyImage", image),
        "edit": ("DiverseVAREdit", {**inputs, "picture": ["image", 0], **edit}),
        "save": ("PreviewImage", {"images": ["edit", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def encoded(family: str, **sampler) -> dict:
    """A prompt whose sampler varies a picture of its size, red on the left, blue on the right."""
    prompt, side = graph(family, picture=["encode", 0], **sampler), PIXELS[family]
    for name, color in (("image", 0xC04020), ("blue", 0x2040C0)):
        inputs = {"width": side, "height": side, "color": color}
        prompt[name] = {"class_type": "EmptyImage", "inputs": inputs}
    both = {"destination": ["image", 0], "source": ["blue", 0], "x": side // 2, "y": 0}
    both |= {"resize_source": False}
    prompt["both"] = {"class_type": "ImageCompositeMasked", "inputs": both}
    inputs = {"pixels": ["both", 0], "vae": ["vae", 0], "model": ["model", 0]}
    prompt["encode"] = {"class_type": "DiverseVAREncode", "inputs": inputs}
    return prompt


def pixels(outcome) -> list[np.ndarray]:
    assert outcome.error is None
    return [np.asarray(picture) for picture in outcome.pictures]
