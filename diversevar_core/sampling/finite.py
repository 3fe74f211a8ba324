"""Where NaN and infinity in an image come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..conditions import Condition, Text
from ..errors import UserError, quote
from ..models.family import Family
from ..schedule import Scale
from .run import Method


def not_finite(
    model: Family, condition: Condition, methods: Sequence[Method], scale: Scale
) -> UserError:
    """The error to raise for NaN or infinity at a map; it names the likely cause."""
    return UserError(
        f"From the token map of side {scale.side} on, the image is computed with NaN or "
        f"infinity: {cause(model, condition, methods)}."
    )


def cause(model: Family, condition: Condition, methods: Sequence[Method]) -> str:
    """The likely cause: the condition, a weight, or numbers that grew too large."""
    if isinstance(condition, Text):
        given = {"the prompt": condition.positive, "the negative prompt": condition.negative or ()}
        for name, features in given.items():
            if not all(map(is_finite, features)):
                return f"{name} already contains them; look for a weight such as (word:nan)"
        if condition.source is not None and not is_finite(condition.source):
            return "the image to edit already contains them"
    for name, weight in model.named_parameters():
        if not weight.is_meta and not is_finite(weight):
            return (
                f"the model's weight {quote(name)} contains them; the file is broken, or a LoRA "
                "or its strength is not finite"
            )
    cures = [f"lower {method.pushes}" for method in methods if method.pushes]
    if model.dtype == torch.float16:
        cures.append("compute in bfloat16 or float32, as float16 has no number above 65504")
    cures = cures or ["lower cfg, raise tau, or lower the strength of a LoRA"]
    return f"numbers grow too large, or a LoRA brings them; {', or '.join(cures)}"


def is_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinity (a GPU is waited for)."""
    return bool(x.float().isfinite().all())
