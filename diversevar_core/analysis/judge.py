"""How well an image follows its prompt, by the model's own likelihood of its tokens.

Alignment is the tokens' log-likelihood with the prompt minus that without it, the pointwise mutual
information of prompt and image. A broken image has a low likelihood in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditions import Condition
from ..methods.path_search import log_likelihood
from ..models.family import Family
from ..schedule import Schedule
from ..vae.vae import VAE


class Judged(NamedTuple):
    """Per image, (B,) float64, in nats."""

    alignment: Tensor
    likelihood: Tensor


@torch.no_grad()
def self_alignment(
    model: Family, vae: VAE, maps: Sequence[Tensor], condition: Condition, schedule: Schedule
) -> Judged:
    """Judge images by the tokens (B, n) or bits (B, n, bits) of all their maps.

    The likelihood of each map is computed given the image's coarser maps, without guidance, at
    temperature 1. With a negative text, alignment is relative to it, not to the unconditional text.
    """
    state = model.start(schedule, len(schedule), guided=True)
    model.condition(state, condition)
    maps_nats = []  # of each map: with the prompt, then without it, (2B,)
    f_hat = features = None
    for scale, tokens in zip(schedule, maps, strict=True):
        x = model.embed(state, features) + model.positions(state, scale)
        for i in range(model.depth):
            x = model.block(state, i, scale, x)
        both = (model.logits(state, x), torch.cat((tokens, tokens)))
        nats = log_likelihood(*both, model.token_kind.choices).cpu()  # MPS has no float64
        maps_nats.append(nats.double().sum(dim=1))
        f_hat, features = vae.accumulate(f_hat, tokens, scale)
    likelihood, without = torch.stack(maps_nats).sum(dim=0).chunk(2)
    return Judged(likelihood - without, likelihood)
