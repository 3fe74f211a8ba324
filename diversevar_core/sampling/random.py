"""Logits -> tokens, and the random streams that they are drawn with.

A token is drawn as ``argmax(p / e)`` with one unit exponential random number e per choice. This is
how ``torch.multinomial`` draws one sample, so an image gets the same random numbers as in the
original implementations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedule import Scale


class PerImage:
    """One stream per image, seeded with seeds[i], on the CPU.

    So an image's numbers do not depend on the batch or the device. ``exponential`` gives unit
    exponential float32 numbers in a shape whose first axis is the image.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        pinned = device.type == "cuda"  # then the copy need not wait; on MPS it has to
        numbers = torch.empty(shape, pin_memory=pinned)
        for image, generator in zip(numbers, self.generators, strict=True):
            image.exponential_(generator=generator)
        return numbers.to(device, non_blocking=pinned)


class Shared:
    """One stream for the whole batch on the model's device, as the original implementations."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device).manual_seed(seed % 2**64)

    def exponential(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.empty(shape, device=device).exponential_(generator=self.generator)


Stream = PerImage | Shared


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of unlikely choices (last axis) to -inf.

    top_k: keep the k likeliest; 0 keeps all. top_p: keep the likeliest that together reach this
    probability; 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p > 0:
        logits = logits.masked_fill(unlikeliest(logits, 1 - top_p), float("-inf"))
    return logits


def unlikeliest(logits: Tensor, share: float) -> Tensor:
    """Mask of the unlikeliest choices (last axis) with at most this probability together.

    The likeliest choice is never among them.
    """
    ascending, order = logits.sort(dim=-1)
    ascending = ascending.softmax(dim=-1)  # one name for both, to free the logits
    unlikely = ascending.cumsum_(dim=-1) <= share
    unlikely[..., -1] = False
    return unlikely.scatter(-1, order, unlikely)


def pick(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw choices (B, ...) from (B, ..., choices) logits with exponential noise of that shape."""
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def mixture(logits: Tensor, stream: Stream, scale: Scale) -> Tensor:
    """VAR's ``more_smooth``: Gumbel-softmax weights (B, n, V) in place of one choice.

    The mixture becomes sharper from the first map to the last.
    """
    tau = max(0.27 * (1 - 0.95 * scale.progress), 0.005)
    gumbel = -stream.exponential(tuple(logits.shape), logits.device).log()
    return ((logits * (1 + scale.progress) + gumbel) / tau).softmax(dim=-1)
