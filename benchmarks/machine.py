"""What this machine is, which kernels torch has on it, and which models fit."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from . import meter
from .card import GB, Card, Line
from .shapes import PROMPT, build

# packages with attention kernels that ComfyUI can use, and what torch.compile needs
PACKAGES = ("xformers", "sageattention", "flash_attn", "triton")
RELEASED = ("var-d30", "infinity-2b", "infinity-8b", "varedit-8b")


def said(*command: str) -> str:
    """The first line that a program prints, if it is here."""
    try:
        return subprocess.check_output(command, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def device(card: Card) -> Iterator[Line]:
    """Names and versions."""
    kind, driver = card.device.split(":")[0], platform.machine()
    if kind == "cuda":
        name = torch.cuda.get_device_name()
        driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        hip, cuda = torch.version.hip, torch.version.cuda
        driver = f"ROCm {hip}" if hip else f"{driver}, CUDA {cuda}"
    elif kind == "xpu":
        about = torch.xpu.get_device_properties()
        name, driver = about.name, about.driver_version
    elif kind == "mps":
        name, driver = said("sysctl", "-n", "machdep.cpu.brand_string"), platform.mac_ver()[0]
    else:
        name = "CPU"
    yield Line("device", "figure", name)
    yield Line("driver", "figure", driver)
    yield Line("torch", "figure", f"{torch.__version__}, Python {platform.python_version()}")
    yield Line("system", "figure", f"{platform.system()} {platform.release()}")
    free, whole = (size / GB for size in meter.memory(card.device))
    yield Line("memory", "figure", f"{free:.1f} of {whole:.1f} GB free", {"free GB": free})
    installed = [name for name in PACKAGES if importlib.util.find_spec(name)]
    yield Line("packages with kernels", "figure", ", ".join(installed) or "none")


def models(card: Card) -> Iterator[Line]:
    """Which released models fit, by what ComfyUI is asked for, at a million pixels in half."""
    free = meter.memory(card.device)[0]
    for name in RELEASED:
        bench = build(name, "meta", torch.bfloat16)
        weights, asked = bench.needs()
        layers = (sum(p.nbytes for p in m.parameters(False)) for m in bench.model.modules())
        streamed = asked + 2 * max(layers)
        how = "loaded" if weights + asked < free else "streamed" if streamed < free else "not"
        numbers = {"weights": weights / GB, "image": asked / GB, "streamed": streamed / GB}
        shown = ", ".join(f"{part} {size:.2f} GB" for part, size in numbers.items())
        yield Line(name, "figure", f"{shown}: fits {how}", numbers)


def attention(card: Card) -> Iterator[Line]:
    """Torch's kernel for a map's attention to all maps, and to prompts of unequal length."""
    q = torch.randn(2, 16, 256, 128, device=card.device).to(meter.half(card.device))
    text, seen = q[:, :, :PROMPT], torch.ones(2, 1, 1, PROMPT, dtype=torch.bool, device=q.device)
    for what, *keys in (("maps", q, q), ("prompts", text, text, seen)):
        names = meter.events(lambda: F.scaled_dot_product_attention(q, *keys))  # noqa: B023
        kernels = sorted(name for name in names if name.startswith("aten::_scaled_dot_product_"))
        yield Line(f"torch's attention to {what}", "figure", ", ".join(kernels))


def limits(card: Card) -> Iterator[Line]:
    """Products and copies of every type; a CPU's float16 would take minutes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16)[: 2 if card.small else 3]:
        product, copy = meter.ceilings(card.device, dtype)
        shown = f"{product / 1e12:.3g} TFLOP/s in a product, {copy / GB:.0f} GB/s in a copy"
        yield Line(str(dtype), "figure", shown, {"TFLOP/s": product / 1e12, "GB/s": copy / GB})
    yield Line("measured in", "figure", str(meter.half(card.device)))


CHECKS = {"device": device, "models": models, "attention": attention, "limits": limits}
