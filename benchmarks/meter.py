"""Measure time, operations, bytes and memory of a function, and the machine's limits."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear", "attention")
LAUNCH = re.compile(r"^ *(?:\w+ = )?(?:cpp_|triton_|extern_kernels|torch\.ops)[\w.]*\(", re.M)
FREE = ("empty", "_unsafe_view", "detach", "alias", "lift_fresh", "_local_scalar_dense")


@dataclass
class Counts(TorchDispatchMode):
    """Count, while active, the kernels that are launched, their FLOPs and their bytes.

    A view launches nothing. Bytes are those of every kernel's inputs and outputs, read or written
    once; ``elementwise`` are those of all kernels except products, convolutions and attention.
    """

    launches: Counter = field(default_factory=Counter)  # by operation
    flops: int = 0
    bytes: int = 0
    elementwise: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if function.is_view or name.startswith(FREE):
            return result
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        size = sum(t.nbytes for t in {id(t): t for t in tensors}.values())
        self.launches[name] += 1
        self.bytes += size
        if not any(word in name for word in PRODUCTS):
            self.elementwise += size
        if name == "_scaled_dot_product_flash_attention_for_cpu":
            self.flops += sdpa_flop_count(*(t.shape for t in args[:3]))
        elif name == "_linear_pointwise":  # packed
            self.flops += 2 * args[0].numel() * result.shape[-1]
        elif function.overloadpacket in flop_registry:
            count = flop_registry[function.overloadpacket]
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def kernels_of_graphs(work: Callable[[], object]) -> list[int]:
    """Kernels of every graph that torch compiles during ``work``, counted in the code it writes."""
    from torch._inductor import config as inductor  # take seconds, and only this needs them
    from torch._inductor.utils import run_and_get_code

    with inductor.patch(force_disable_caches=True):
        _, codes = run_and_get_code(work)
    return [len(LAUNCH.findall(code.partition("def call(")[2])) for code in codes]


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time, and this process's time on all CPU cores, of one call."""
    synchronize(device)
    wall, busy = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - busy


def synchronize(device: str) -> None:
    """Wait for a GPU to finish."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """The machine's best FLOP/s in a matrix product and bytes/s in a copy, of five tries."""
    side, length = (1024, 2**25) if device == "cpu" else (8192, 2**29)
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.zeros(length, device=device, dtype=torch.uint8)
    c = torch.empty_like(b)
    product = min(seconds(lambda: a @ a, device)[0] for _ in range(5))
    copy = min(seconds(lambda: c.copy_(b), device)[0] for _ in range(5))
    return 2 * side**3 / product, 2 * length / copy


def peak(device: str, reset: bool = False) -> int:
    """Highest memory in bytes since it was last reset: of the GPU's tensors, or this process."""
    if device.startswith("cuda"):
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def spread(values: list[float]) -> str:
    """Median, and the range in brackets."""
    return f"{statistics.median(values):.3f} [{min(values):.3f} {max(values):.3f}]"


def return_freed_memory() -> None:
    """Make new processes return freed memory to the system at once, so that ``peak`` sees it."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
