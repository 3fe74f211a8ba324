"""Logits to tokens, and the random streams behind it.

A token is drawn as ``argmax(p / e)`` with e from the unit exponential distribution, one number
per choice: the exponential noise, which is how ``torch.multinomial`` draws one sample. So one
image sees the same numbers here as in the original implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .schedule import Scale


class Stream(Protocol):
    """Where random numbers come from."""

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Unit exponential float32 numbers of ``shape``, whose first axis is the image."""
        ...


class PerImage:
    """Image i draws from a stream of its own, seeded seeds[i], always on the CPU.

    So its numbers do not depend on the batch, the device or the other images.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        numbers = torch.empty(shape, pin_memory=device.type == "cuda")  # so that no one waits
        for image, generator in zip(numbers, self.generators, strict=True):
            image.exponential_(generator=generator)
        return numbers.to(device, non_blocking=True)


class Shared:
    """One stream for the whole batch on the model's device, as the original implementations."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device).manual_seed(seed % 2**64)

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.empty(shape, device=device).exponential_(generator=self.generator)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Drop unlikely choices (last axis) by setting their logits to -inf.

    top_k: keep the k largest, 0 keeps all; top_p: keep the likeliest that together reach this
    probability, 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p > 0:
        logits = logits.masked_fill(unlikeliest(logits, 1 - top_p), float("-inf"))
    return logits


def unlikeliest(logits: Tensor, share: float) -> Tensor:
    """Which choices (last axis) together have at most this probability; never the likeliest."""
    ascending, order = logits.sort(dim=-1)
    ascending = ascending.softmax(dim=-1)  # one name, so that the logits are freed
    unlikely = ascending.cumsum_(dim=-1) <= share
    unlikely[..., -1] = False
    return unlikely.scatter(-1, order, unlikely)


def draw(logits: Tensor, stream: Stream) -> Tensor:
    """Draw one choice for every entry of (B, ..., choices) logits -> indices (B, ...)."""
    return pick(logits, stream.exponential(tuple(logits.shape), logits.device))


def pick(logits: Tensor, noise: Tensor) -> Tensor:
    """The choices (B, ...) of (B, ..., choices) logits that win against these random numbers."""
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def mixture(logits: Tensor, stream: Stream, scale: Scale) -> Tensor:
    """VAR's ``more_smooth``: Gumbel-softmax weights (B, n, V) instead of one choice.

    The mixture sharpens from the first map to the last.
    """
    tau = max(0.27 * (1 - 0.95 * scale.progress), 0.005)
    gumbel = -stream.exponential(tuple(logits.shape), logits.device).log()
    return ((logits * (1 + scale.progress) + gumbel) / tau).softmax(dim=-1)
