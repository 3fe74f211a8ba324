"""The model judges itself: how well a picture follows its prompt, by the model's own likelihood.

The log-likelihood of its tokens under the prompt, less that without it, is the information that
prompt and picture share (pointwise mutual information); a broken picture is unlikely either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .conditions import Condition
from .families.family import Family
from .methods.keep import Keep
from .methods.path_search import log_likelihood
from .sampler import sample
from .schedule import Schedule
from .settings import Settings
from .tokenizers.tokenizer import Tokenizer


class Judged(NamedTuple):
    """In nats, (B,) float64."""

    alignment: Tensor
    likelihood: Tensor


def self_alignment(
    model: Family,
    tokenizer: Tokenizer,
    maps: Sequence[Tensor],
    condition: Condition,
    schedule: Schedule,
) -> Judged:
    """Judge pictures by their tokens (B, n) or bits (B, n, bits) of every map.

    At temperature 1, unguided, every map after the picture's own coarser ones. Where the condition
    has a negative text, alignment is against that instead of the model's own.
    """
    likelihood, unconditional = (
        likelihood_of(model, tokenizer, maps, condition, schedule, g) for g in (1.0, 0.0)
    )
    return Judged(likelihood - unconditional, likelihood)


def likelihood_of(
    model: Family,
    tokenizer: Tokenizer,
    maps: Sequence[Tensor],
    condition: Condition,
    schedule: Schedule,
    g: float,
) -> Tensor:
    """Log-likelihood (B,) under the prompt (guidance 1) or without it (guidance 0)."""
    settings = Settings(cfg=(g,), cfg_schedule="flat", tau=(1.0,), top_k=0, top_p=0.0)
    kept, seeds = Keep(maps, side=schedule[-1].side), range(len(condition))
    steps = sample(model, tokenizer, condition, schedule, settings, seeds, methods=[kept])
    choices, total = model.token_kind.choices, torch.zeros(len(condition), dtype=torch.float64)
    for step in steps:
        total += log_likelihood(step.logits, step.tokens, choices).double().sum(dim=1).cpu()
    return total
