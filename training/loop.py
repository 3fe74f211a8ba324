"""What the training commands share: the learning rate, checkpoints to resume from, the log."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak``, then a half cosine down to 1 % of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def batches(n: int, size: int, seed: int, step: int) -> Iterator[Tensor]:
    """Endless index batches from ``step`` on: every epoch is a permutation fixed by the seed."""
    per_epoch = n // size
    while True:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: per_epoch * size].split(size)[place:]
        step += per_epoch - place


def autocast(device: torch.device | str = "cpu") -> torch.autocast:
    """bfloat16, except on CPUs without instructions for it, where it is ten times slower."""
    kind, able = torch.device(device).type, torch.cpu.get_capabilities()
    fast = kind != "cpu" or able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.autocast(kind, torch.bfloat16, enabled=bool(fast))


def save(path: Path, state: dict) -> None:
    """Write a checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    torch.save(state, draft)
    draft.replace(path)


def resume(path: Path) -> dict | None:
    """The checkpoint's state, None where there is none."""
    return torch.load(path, weights_only=True) if path.exists() else None


def kept(path: Path, made_of: Iterable[Tensor | bytes], make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns, kept at ``path`` as long as what it is made of stays."""
    digest = hashlib.sha256()
    for part in made_of:
        digest.update(part if isinstance(part, bytes) else part.detach().cpu().contiguous().numpy())
    state = resume(path)
    if state is None or state["of"] != digest.hexdigest():
        state = {"made": make(), "of": digest.hexdigest()}
        save(path, state)
    return state["made"]


class Log:
    """Print the averages of each step's values, every ``every`` steps."""

    def __init__(self, every: int):
        self.every, self.sums, self.since = every, {}, time.time()

    def __call__(self, step: int, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) / self.every
        if step % self.every == 0:
            seconds = (time.time() - self.since) / self.every
            means = "  ".join(f"{name} {mean:.4f}" for name, mean in self.sums.items())
            print(f"step {step}  {means}  {seconds:.3f} s/step", flush=True)
            self.sums, self.since = {}, time.time()
