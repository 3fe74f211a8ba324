"""Measure time, launches, operations and memory of a call on any device.

Devices are named as torch names them: cpu, cuda (NVIDIA, AMD), xpu (Intel), mps (Apple).
"""

from __future__ import annotations

import gc
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

# Metal's, cuBLAS's and a CPU's own errors, which are plain RuntimeErrors
FULL = re.compile("out of memory|ALLOC_FAILED|can't allocate memory", re.I)
Result = TypeVar("Result")


def api(device: str) -> ModuleType:
    """Torch's module for a device that is not a CPU."""
    return getattr(torch, device.split(":")[0])


def use(device: str) -> None:
    """Make a device such as cuda:1 the one that torch's functions without a device mean."""
    if ":" in device:
        api(device).set_device(device)


def synchronize(device: str) -> None:
    """Wait for the device to finish."""
    if device != "cpu":
        api(device).synchronize()


def half(device: str) -> torch.dtype:
    """What to measure in: bfloat16, or float16 on cards without it; float32 on a CPU."""
    if device == "cpu":
        return torch.float32
    if device.startswith("cuda"):  # older ones emulate it, which is slow
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    try:
        torch.ones(2, 2, device=device, dtype=torch.bfloat16).sum()
    except (RuntimeError, TypeError):  # Metal before macOS 14
        return torch.float16
    return torch.bfloat16


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one call; on a CPU, which others may use too, of this process on all cores."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    began = clock()
    work()
    synchronize(device)
    return clock() - began


def ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """The best of six: FLOP/s of a large matrix product, bytes/s of a copy."""
    side, length = (1024, 2**25) if device == "cpu" else (8192, 2**28)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.zeros(length, device=device, dtype=torch.uint8)
    c = torch.empty_like(b)
    product = min(seconds(lambda: a @ a, device) for _ in range(6))
    copy = min(seconds(lambda: c.copy_(b), device) for _ in range(6))
    return 2 * side**3 / product, 2 * length / copy


def flops(work: Callable[[], object]) -> int:
    """Operations of a call's products, convolutions and attention, as far as torch counts them.

    On a CPU it counts neither attention nor packed layers.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def events(work: Callable[[], object]) -> Counter[str]:
    """How often torch's profiler saw each operation, kernel and call of the driver in a call."""
    with torch.profiler.profile() as trace:
        work()
    return Counter({event.key: event.count for event in trace.key_averages()})


def launches(work: Callable[[], object]) -> tuple[int, int]:
    """Kernels that a call launches, and how often the CPU waits for them; the profiler waits too.

    It sees CUDA's and ROCm's driver only. Elsewhere, no launches, and the numbers that are read.
    """
    seen = events(work)
    launched = sum(count for name, count in seen.items() if "LaunchKernel" in name)
    waits = sum(count for name, count in seen.items() if name.endswith("Synchronize"))
    return launched, waits if launched else seen["aten::_local_scalar_dense"]


def free_memory(device: str) -> None:
    """Return to the device what nothing holds any more."""
    gc.collect()
    if device != "cpu":
        api(device).empty_cache()


def memory(device: str) -> tuple[int, int]:
    """Bytes of the device's memory that are free, and all."""
    if device == "cpu":
        return psutil.virtual_memory().available, psutil.virtual_memory().total
    if device == "mps":  # memory is the machine's; beyond this share of it Metal becomes slow
        most = torch.mps.recommended_max_memory()
        return most - torch.mps.driver_allocated_memory(), most
    if device.startswith("xpu"):  # not all of them say what other processes hold
        whole = torch.xpu.get_device_properties().total_memory
        return whole - torch.xpu.memory_reserved(), whole
    return torch.cuda.mem_get_info()


def peak(work: Callable[[], object], device: str) -> int:
    """The most bytes that a call holds above those before it.

    On a CPU of the whole process, as Linux tells it. On Metal, which keeps no record, of what its
    allocator has come to hold.
    """
    free_memory(device)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
        work()
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) - before
    if device == "mps":
        before = torch.mps.driver_allocated_memory()
        work()
        return torch.mps.driver_allocated_memory() - before
    api(device).reset_peak_memory_stats()
    before = api(device).memory_allocated()
    work()
    return api(device).max_memory_allocated() - before


def fits(work: Callable[[], Result], device: str) -> Result | None:
    """What a call returns, or None if memory was not enough for it; then it is free again."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and not FULL.search(str(error)):
            raise
    free_memory(device)  # here and not above, where the error still holds the call's tensors
    return None
