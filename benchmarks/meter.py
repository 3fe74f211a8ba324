"""Measure time, operations, bytes and memory of a function on any device, and the limits of that.

Devices are named as torch names them: cpu, cuda (NVIDIA, AMD), xpu (Intel), mps (Apple).
"""

from __future__ import annotations

import gc
import re
import time
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

LAUNCH = re.compile(r"^ *(?:\w+ = )?(?:cpp_|triton_|extern_kernels|torch\.ops)[\w.]*\(", re.M)
# Metal and cuBLAS raise a plain RuntimeError, a CPU's allocator too
FULL = re.compile("out of memory|ALLOC_FAILED|can't allocate memory", re.I)
Result = TypeVar("Result")


# what torch's counter does not know: attention and packed layers (..., in) @ (in, out) on a CPU
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **options: sdpa_flop_count(q, k, v)
    ),
    torch.ops.mkldnn._linear_pointwise: (
        lambda x, *_, out_shape, **options: 2 * prod(x) * out_shape[-1]
    ),
}


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of all products, convolutions and attention of a call."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        work()
    return counter.get_total_flops()


def kernels_of_graphs(work: Callable[[], object]) -> list[int]:
    """Kernels of every graph that torch compiles during ``work``, counted in the code it writes."""
    from torch._inductor import config as inductor  # take seconds, and only this needs them
    from torch._inductor.utils import run_and_get_code

    with inductor.patch(force_disable_caches=True):
        _, codes = run_and_get_code(work)
    return [len(LAUNCH.findall(code.partition("def call(")[2])) for code in codes]


def events(work: Callable[[], object]) -> Counter:
    """How often torch's profiler saw each operation, kernel and call of the driver in a call."""
    with torch.profiler.profile() as trace:
        work()
    return Counter({event.key: event.count for event in trace.key_averages()})


def launches(work: Callable[[], object]) -> tuple[int, int]:
    """Kernels that a call launches, and how often the CPU waits for the device.

    The profiler waits once or twice itself. It sees CUDA's and ROCm's driver only: on other devices
    no launches, and for waits the numbers that are read.
    """
    seen = events(work)
    launched = sum(count for name, count in seen.items() if "LaunchKernel" in name)
    waits = sum(count for name, count in seen.items() if name.endswith("Synchronize"))
    return launched, waits if launched else seen["aten::_local_scalar_dense"]


def api(device: str) -> ModuleType | None:
    """Torch's module for the device; None for a CPU."""
    return None if device == "cpu" else getattr(torch, device.split(":")[0])


def use(device: str) -> None:
    """Make ``cuda:1`` what the other functions here, and torch, mean by this process's device."""
    if ":" in device:
        api(device).set_device(device)


def synchronize(device: str) -> None:
    """Wait for the device to finish."""
    if device != "cpu":
        api(device).synchronize()


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
    return api(device).mem_get_info()


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one call; on a CPU, which others may use too, of this process on all cores."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def peak(work: Callable[[], object], device: str) -> int:
    """The most bytes that a call holds above those before it.

    On a CPU of the whole process, which must return what it frees at once (see ``card.PARTS``) and
    run on Linux. On Metal, which keeps no record, of what its allocator has come to hold.
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
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not FULL.search(
            str(error)
        ):
            raise
    free_memory(device)  # here and not above, where the error still holds the call's tensors
    return None


def ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """The device's best FLOP/s in a matrix product and bytes/s in a copy, of five tries."""
    side, length = (1024, 2**25) if device == "cpu" else (8192, 2**29)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.zeros(length, device=device, dtype=torch.uint8)
    c = torch.empty_like(b)
    product = min(seconds(lambda: a @ a, device) for _ in range(6))
    copy = min(seconds(lambda: c.copy_(b), device) for _ in range(6))
    return 2 * side**3 / product, 2 * length / copy


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
