"""Where NaN and infinity in an image come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..conditions import Condition, Text
from ..errors import UserError, quote
from ..models.family import Family
from ..schedule import Schedule
from .method import Method, Step


def check_finite(
    steps: Iterator[Step],
    maps: Schedule,
    model: Family,
    condition: Condition,
    methods: Sequence[Method],
) -> Iterator[Step]:
    """Yield the steps of these maps; UserError, which names the likely cause, for NaN or infinity.

    The logits' means are read once, before the last step, as reading them waits for a GPU.
    """
    means = []
    for scale in maps:
        try:
            step = next(steps)
        except torch.linalg.LinAlgError as error:  # of SSR and SAR, for what is not finite
            raise not_finite(model, condition, methods, scale.side) from error
        means.append(step.logits.mean())
        if scale is maps[-1]:
            for before, mean in zip(maps, torch.stack(means).tolist(), strict=True):
                if not math.isfinite(mean):
                    raise not_finite(model, condition, methods, before.side)
        yield step


def not_finite(
    model: Family, condition: Condition, methods: Sequence[Method], side: int
) -> UserError:
    """The error to raise for NaN or infinity at the map of this side."""
    return UserError(
        f"From the token map of side {side} on, the image is computed with NaN or infinity: "
        f"{cause(model, condition, methods)}."
    )


def cause(model: Family, condition: Condition, methods: Sequence[Method]) -> str:
    """The likely cause: the condition, a weight, or numbers that grew too large."""
    if isinstance(condition, Text):
        prompts = {"prompt": condition.positive, "negative prompt": condition.negative or ()}
        for name, features in prompts.items():
            if not all(map(is_finite, features)):
                return f"the {name} already contains them; look for a weight such as (word:nan)"
        if condition.source is not None and not is_finite(condition.source):
            return "the image to edit already contains them"
    for name, weight in model.named_parameters():
        if not weight.is_meta and not is_finite(weight):
            return (
                f"the model's weight {quote(name)} contains them; the file is broken, or a LoRA "
                "or its strength is not finite"
            )
    cures = [f"lower the strength of {method.name}" for method in methods if method.name]
    if model.dtype == torch.float16:
        cures.append("compute in bfloat16 or float32, as float16 has no number above 65504")
    cures = cures or ["lower cfg, raise tau, or lower the strength of a LoRA"]
    return f"activations overflowed, or the LoRA contains NaN; {', or '.join(cures)}"


def is_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinity (a GPU is waited for)."""
    return bool(x.float().isfinite().all())
