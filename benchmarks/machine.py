"""What this machine is, which kernels it has, and which models fit it."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from . import meter
from .card import Card, Line
from .shapes import PROMPT, build

GB = 1e9
# packages with attention kernels that ComfyUI can use, and what torch.compile needs
PACKAGES = ("xformers", "sageattention", "flash_attn", "triton")
# run by the host's Python in its folder: what it would choose
CHOICES = """
import json, sys
from comfy.cli_args import args
args.cpu = sys.argv[1] == "cpu"
import comfy.model_management as m
from comfy.ldm.modules.attention import optimized_attention
device, kinds = m.get_torch_device(), [m.torch.bfloat16, m.torch.float16, m.torch.float32]
print(json.dumps({
    "attention kernel": optimized_attention.__name__,
    "memory mode": m.vram_state.name,
    "weights of a 2B model": str(m.unet_dtype(device, 2**31, kinds)),
    "weights of an 8B model": str(m.unet_dtype(device, 2**33, kinds)),
    "VAE": str(m.vae_dtype(device, [m.torch.bfloat16, m.torch.float32])),
}))
"""


def device(card: Card) -> Iterator[Line]:
    """Names and versions."""
    kind = card.device.split(":")[0]
    name, driver = "CPU", platform.machine()
    if kind == "mps":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name, driver = subprocess.check_output(command, text=True).strip(), platform.mac_ver()[0]
    elif kind == "xpu":
        about = torch.xpu.get_device_properties(card.device)
        name, driver = about.name, about.driver_version
    elif kind == "cuda":
        name = torch.cuda.get_device_name(card.device)
        driver = f"ROCm {torch.version.hip}" if torch.version.hip else nvidia_driver()
    yield Line("device", "figure", name)
    yield Line("driver", "figure", driver)
    yield Line("torch", "figure", f"{torch.__version__}, Python {platform.python_version()}")
    yield Line("system", "figure", f"{platform.system()} {platform.release()}")
    free, whole = (size / GB for size in meter.memory(card.device))
    yield Line("memory", "figure", f"{free:.1f} of {whole:.1f} GB free", {"free GB": free})
    installed = [name for name in PACKAGES if importlib.util.find_spec(name)]
    yield Line("packages with kernels", "figure", ", ".join(installed) or "none")


def nvidia_driver() -> str:
    """The version of NVIDIA's driver and of torch's CUDA."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.check_output(command, text=True).split()[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "of unknown version"
    return f"{driver}, CUDA {torch.version.cuda}"


def limits(card: Card) -> Iterator[Line]:
    """Products and copies of every type; a CPU's float16 would take minutes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16)[: 2 if card.small else 3]:
        product, copy = meter.ceilings(card.device, dtype)
        shown = f"{product / 1e12:.3g} TFLOP/s in a product, {copy / 1e9:.0f} GB/s in a copy"
        yield Line(str(dtype), "figure", shown, {"TFLOP/s": product / 1e12, "GB/s": copy / 1e9})
    yield Line("computes in", "figure", str(meter.half(card.device)))


def attention(card: Card) -> Iterator[Line]:
    """Torch's kernel for a map's attention to all maps, and to prompts of unequal length."""
    q = torch.randn(2, 16, 256, 128, device=card.device).to(meter.half(card.device))
    text, seen = q[:, :, :PROMPT], torch.ones(2, 1, 1, PROMPT, dtype=torch.bool, device=q.device)
    for what, keys, mask in (("maps", q, None), ("prompts", text, seen)):
        seen = meter.events(lambda: F.scaled_dot_product_attention(q, keys, keys, mask))  # noqa: B023
        kernels = [name for name in seen if name.startswith("aten::_scaled_dot_product_")]
        yield Line(f"torch's attention to {what}", "figure", ", ".join(kernels))


def models(card: Card) -> Iterator[Line]:
    """Which released models fit, by what ComfyUI is asked for."""
    free = meter.memory(card.device)[0] / GB
    for name in ("var-d30", "infinity-2b", "infinity-8b", "varedit-8b"):
        bench = build(name, "meta", torch.bfloat16)
        weights, asked = (size / GB for size in bench.needs())
        layers = (sum(p.nbytes for p in m.parameters(False)) for m in bench.model.modules())
        streamed = asked + 2 * max(layers) / GB
        how = "loaded" if weights + asked < free else "streamed" if streamed < free else "not"
        shown = f"{weights:.2f} GB of weights, {asked:.2f} for an image; with weights streamed "
        shown += f"{streamed:.2f} in all: fits {how}"
        numbers = {"weights GB": weights, "asked GB": asked, "streamed GB": streamed}
        yield Line(name, "figure", shown, numbers)


def comfyui(card: Card) -> Iterator[Line]:
    """What ComfyUI would choose here."""
    if card.host is None:
        return
    command = [card.python, "-c", CHOICES, card.device]
    done = subprocess.run(command, cwd=card.host, capture_output=True, text=True)
    if done.returncode:
        yield Line("ComfyUI", "fail", done.stderr.strip().splitlines()[-1])
        return
    for what, choice in json.loads(done.stdout.splitlines()[-1]).items():
        yield Line(f"ComfyUI: {what}", "figure", choice)


CHECKS = {
    "device": device,
    "models": models,
    "ComfyUI": comfyui,
    "attention": attention,
    "limits": limits,
}
