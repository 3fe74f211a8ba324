"""The nodes in a real ComfyUI on the device, asked over HTTP as its page does."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.files import Checkpoint
from diversevar_core.convert import write
from diversevar_core.models.infinity import Infinity
from diversevar_core.vae.bsq import BSQ

from .card import GB, ROOT, Card, Line
from .shapes import SHAPES, STD, TEXT

sys.path.append(str(ROOT / "tests"))
from comfy_host import Host, Refused  # noqa: E402

DISK = 16e9  # bytes for models and their random numbers
LEAK = 0.3  # GB that the libraries of a driver may go on to hold
GRAPHS = ROOT / "workflows" / "api"
SMALL = json.loads((GRAPHS / "1 Text to image, works at once.json").read_text())
LARGE = json.loads((GRAPHS / "Infinity-2B, large images (9 GB).json").read_text())
# what ComfyUI says of itself when it starts
SAYS = re.compile(r"(?:Set vram state|Using [\w ]+ (?:attention|optimization)|DynamicVRAM).*")
MODES = (  # with Dynamic VRAM, --lowvram does nothing
    ("--disable-dynamic-vram",),
    ("--disable-dynamic-vram", "--lowvram"),
)


def write_models(models: Path, small: bool) -> None:
    """Random weights in files like Infinity-2B's, 12 GB or small, and a LoRA."""
    for folder in ("diffusion_models", "vae", "text_encoders", "loras"):
        (models / folder).mkdir(parents=True)
    shape = SHAPES["infinity-tiny" if small else "infinity-2b"]
    heads, layers = (2, 1) if small else (32, 24)
    sizes = {"d_model": TEXT, "d_kv": 64, "d_ff": 160 * heads, "num_layers": layers}
    text = T5Config(vocab_size=32128, num_heads=heads, feed_forward_proj="gated-gelu", **sizes)
    with torch.device("meta"):
        parts = Infinity(shape.model), BSQ(shape.vae), T5EncoderModel(text)
    parts = [part.state_dict() for part in parts]
    noise, most = models / "noise", max(t.numel() for part in parts for t in part.values())
    torch.from_file(str(noise), shared=True, size=most).normal_(std=STD)
    for part in parts:  # every tensor is a map of that file, so that none takes memory
        for name, tensor in part.items():
            part[name] = torch.from_file(str(noise), size=tensor.numel()).view(tensor.shape)
    model, vae, text = parts
    path = models / "diffusion_models" / LARGE["1"]["inputs"]["model_name"]
    torch.save(model, path)
    path.with_suffix(".json").write_text(json.dumps({"pn": shape.model.pixels}))
    torch.save({"vae": vae}, models / "vae" / LARGE["2"]["inputs"]["vae_name"])
    with (models / "text_encoders" / LARGE["3"]["inputs"]["clip_name"]).open("wb") as file:
        write(file, Checkpoint(text, {}), dict.fromkeys(text, torch.bfloat16))
    width, lora = shape.model.width, {}
    for i in range(shape.model.depth):
        lora[f"blocks.{i}.ffn.fc1.lora_up.weight"] = torch.randn(4 * width, 4) / 10
        lora[f"blocks.{i}.ffn.fc1.lora_down.weight"] = torch.randn(4, width) / 10
    save_file(lora, models / "loras" / "random.safetensors")
    shutil.copy(included.MODEL, models / "diffusion_models" / "octopus.safetensors")


@contextmanager
def running(card: Card, *options: str) -> Iterator[Host]:
    """ComfyUI with these options, with the models of ``write_models``."""
    number = card.device.partition("cuda:")[2]
    device = ["--cpu"] if card.small else ["--cuda-device", number] if number else []
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    host = Host(card.host, python, card.scratch / "base", options=[*device, *options])
    try:
        yield host
    except urllib.error.URLError as error:
        code, words = host.process.poll(), host.log.splitlines()[-1]
        raise RuntimeError(f"{error}; exit code {code}, and its log ends: {words}") from error
    finally:
        host.stop()


def queue(host: Host, prompt: dict) -> Callable[[], dict]:
    """Queue a prompt; returns a function that waits for its entry in the history."""
    try:
        answer = json.loads(host.fetch("/prompt", {"prompt": host.filled(prompt)}))
    except urllib.error.HTTPError as error:
        raise Refused(error.read().decode()) from error
    if answer["node_errors"]:  # others of its nodes run
        raise Refused(json.dumps(answer["node_errors"]))
    number = answer["prompt_id"]
    look = lambda: host.get(f"/history/{number}").get(number)  # noqa: E731
    return partial(host.wait, "The prompt did not end", look)


def attempt(
    card: Card, host: Host, what: str, prompt: dict, like: str = "", equal: bool | None = None
) -> Line:
    """Run a prompt. like: the first of this name is kept; equal: as which its images must be."""
    try:
        entry = queue(host, prompt)()
    except Refused as error:
        return Line(what, "fail", str(error))
    messages = dict(entry["status"]["messages"])
    if "execution_error" in messages:
        return Line(what, "fail", messages["execution_error"]["exception_message"])
    began, ended = (messages[f"execution_{at}"]["timestamp"] for at in ("start", "success"))
    images = np.stack([np.asarray(Image.open(BytesIO(file))) for file in host.images(entry)])
    shown = f"{len(images)} images in {(ended - began) / 1000:.1f} s"
    result, kept = "pass", card.scratch / f"{like}.npy"
    if like and not kept.exists():
        np.save(kept, images)
    elif like:
        share = (np.load(kept) == images).mean()
        shown += f", {share:.1%} of their numbers as before"
        result = "fail" if equal not in (None, share == 1) else "pass"
    return Line(what, result, shown, {"seconds": (ended - began) / 1000})


def changed(prompt: dict, **inputs: object) -> dict:
    """A prompt with other values of these inputs, in whichever node has them."""
    nodes = deepcopy(prompt)
    for node in nodes.values():
        node["inputs"] |= {name: inputs[name] for name in inputs.keys() & node["inputs"].keys()}
    return nodes


def free_gb(host: Host) -> float:
    """Free memory of the device after the page's two buttons that free it."""
    host.fetch("/free", {"unload_models": True, "free_memory": True})
    time.sleep(3)
    return host.get("/system_stats")["devices"][0]["vram_free"] / GB


def with_lora(prompt: dict) -> dict:
    """The prompt with the random LoRA behind the model."""
    inputs = {"model": ["1", 0], "lora_name": "random.safetensors"}
    lora = {"class_type": "DiverseVARLoadLora", "inputs": inputs}
    return changed(prompt, model=["lora", 0]) | {"lora": lora}


def calibrating(prompt: dict) -> dict:
    """A calibration of a copy of the prompt's model, as it is saved next to the file."""
    inputs = {"model": ["1", 0], "vae": ["2", 0], "clip": ["3", 0], "prompts": "octopus"}
    node = {"class_type": "DiverseVARCalibrate", "inputs": inputs | {"seeds": 2}}
    loaders = {name: prompt[name] for name in "123"}
    return changed(loaders | {"4": node}, model_name="octopus.safetensors")


def cancel(card: Card, host: Host) -> Line:
    """Cancel a batch while it is drawn."""
    ended = queue(host, changed(LARGE, batch_size=64 if card.small else 8, seed=2))
    host.wait("The prompt did not start", lambda: host.get("/queue")["queue_running"])
    time.sleep(2)
    began = time.time()
    host.interrupt()
    cancelled = "execution_interrupted" in dict(ended()["status"]["messages"])
    shown = f"over after {time.time() - began:.1f} s"
    return Line("Cancel", "pass" if cancelled else "fail", shown)


def default(card: Card) -> Iterator[Line]:
    """ComfyUI as it starts by itself: templates, what a user adds to them, Cancel, and memory."""
    full = shutil.disk_usage(card.scratch).free > DISK and not card.small
    if not card.small and not full:
        yield Line("models of full size", "skipped", f"{DISK / GB:.0f} GB of disk are not free")
    write_models(card.scratch / "base" / "models", not full)
    with running(card) as host:
        run = partial(attempt, card, host)
        for said in SAYS.findall(host.log):
            yield Line("ComfyUI says", "figure", said)
        yield run("template 1", SMALL, "small")
        before = free_gb(host)
        yield run("Infinity-2B's template", LARGE, "large")
        tiles = {"class_type": "VAEDecodeTiled", "inputs": {"samples": ["6", 0], "vae": ["2", 0]}}
        yield run("its decoder alone, tiled", LARGE | {"7": tiles}, "large")  # of what is drawn
        for what, prompt in {
            "another seed": changed(LARGE, seed=1),
            "with a LoRA": with_lora(LARGE),
            "in float8": changed(LARGE, weight_dtype="fp8_e4m3fn"),
        }.items():
            yield run(what, prompt, "large", equal=False)
        yield run("Calibrate Diversity", calibrating(SMALL))
        yield cancel(card, host)
        kept = before - free_gb(host)
        result = "pass" if kept < LEAK else "fail"
        if not card.device.startswith(("cuda", "xpu")):  # the memory is that of all programs
            result = "figure"
        yield Line("kept when all is freed", result, f"{kept:.2f} GB", {"GB": kept})
        yield run("template 1 after all that", SMALL, "small", equal=True)


def otherwise(card: Card, options: Sequence[str]) -> Iterator[Line]:
    """The templates in ComfyUI with other options, which must draw the same images."""
    if card.small and "--lowvram" in options:
        return  # the host refuses it with --cpu
    with running(card, *options) as host:
        for name, prompt in (("small", SMALL), ("large", LARGE)):
            what = f"the {name} template with {' '.join(options)}"
            yield attempt(card, host, what, prompt, name, equal=True)


CHECKS = {"as it starts": default} | {
    " ".join(options): partial(otherwise, options=options) for options in MODES
}
