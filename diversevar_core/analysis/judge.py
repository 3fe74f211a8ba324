"""The model judges itself: how well an image follows its prompt, by the model's own likelihood.

The log-likelihood of its tokens under the prompt, less that without it, is the information that
prompt and image share (pointwise mutual information); a broken image is unlikely either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..methods.path_search import log_likelihood
from ..models.family import Family
from ..sampling.conditions import Condition
from ..sampling.schedule import Schedule
from ..vae.tokenizer import Tokenizer


class Judged(NamedTuple):
    """In nats, (B,) float64."""

    alignment: Tensor
    likelihood: Tensor


@torch.no_grad()
def self_alignment(
    model: Family,
    tokenizer: Tokenizer,
    maps: Sequence[Tensor],
    condition: Condition,
    schedule: Schedule,
) -> Judged:
    """Judge images by their tokens (B, n) or bits (B, n, bits) of every map.

    At temperature 1, unguided, every map after the image's own coarser ones. Where the condition
    has a negative text, alignment is against that instead of the model's own. Both are computed
    together, in the rows of a guided batch.
    """
    state = model.start(schedule, len(schedule), guided=True)
    model.condition(state, condition)
    total = torch.zeros(2, len(condition), dtype=torch.float64)  # with the prompt, without it
    f_hat = features = None
    for scale, tokens in zip(schedule, maps, strict=True):
        x = model.embed(state, features, scale)
        for i in range(model.depth):
            x = model.block(state, i, scale, x)
        both = (model.logits(state, x), torch.cat((tokens, tokens)))
        nats = log_likelihood(*both, model.token_kind.choices).double().sum(dim=1)
        total += nats.view(2, -1).cpu()
        f_hat, features = tokenizer.accumulate(f_hat, tokens, scale)
    return Judged(total[0] - total[1], total[0])
