"""Teacher forcing: all maps of a picture in one pass, with bitwise self-correction.

Infinity, arXiv 2412.04431, section 3.3. The next map's input is resized as in sampling
(``BSQ.accumulate``), where the paper's training averages areas, so that training and sampling have
the same inputs.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diversevar_core.conditions import Text
from diversevar_core.models.attention import Attention
from diversevar_core.models.blocks import Rotary
from diversevar_core.models.infinity import Infinity
from diversevar_core.resize import area
from diversevar_core.schedule import Schedule
from diversevar_core.vae.bsq import BSQ

ROWS = 8  # pictures whose scores fit in a CPU's cache
SMALL = 100  # maps that end earlier share the next one's scores, masked
FLIPPED = 0.3  # largest share of flipped bits; each picture's share is uniform in 0 to this


class Batch(NamedTuple):
    """targets (B, L, bits) of all maps, how far from the other value each was (B, L, bits), as a
    multiple of its map's mean, inputs (B, L - 1, bits) of all maps but the first, and the sum
    f_hat (B, bits, H, W) of the maps as the inputs have them.
    """

    targets: Tensor
    distance: Tensor
    inputs: Tensor
    f_hat: Tensor


def self_correcting(
    tokenizer: BSQ,
    features: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    flipped: float = FLIPPED,
) -> Batch:
    """Encoder features (B, d, H, W) -> the bits to predict, and inputs with some bits flipped."""
    share = flipped * torch.rand(len(features), 1, 1, generator=generator)
    f_hat, targets, distance, inputs = torch.zeros_like(features), [], [], []
    for scale in schedule:
        z = area(features - f_hat, scale.h, scale.w)
        bits = rearrange(z > 0, "b d h w -> b (h w) d")
        flips = torch.rand(bits.shape, generator=generator) < share
        f_hat, shown = tokenizer.accumulate(f_hat, bits ^ flips.to(bits.device), scale)
        targets.append(bits)
        distance.append(rearrange(z.abs() / z.abs().mean(), "b d h w -> b (h w) d"))
        inputs.append(shown)
    maps = (torch.cat(maps, dim=1) for maps in (targets, distance, inputs[:-1]))
    return Batch(*maps, f_hat)


def whole_rotary(model: Infinity, schedule: Schedule, device: torch.device) -> Rotary:
    """Cosines and sines of the rotary angles of all maps' tokens, (L, head_dim / 2, 2)."""
    return model.rotary_table(
        torch.cat([model.grid_positions(scale) for scale in schedule]), device
    )


def by_map(schedule: Schedule) -> Attention:
    """Attention, under the mask of a ``Teacher``, of all maps' tokens or of the first maps'.

    Only the small maps need the mask. Of each later map just the scores that it leaves are
    computed, of a few pictures at a time: on a CPU four times as fast as all at once.
    """
    ends = [end for end in accumulate(scale.tokens for scale in schedule) if end > SMALL]

    @torch.compiler.disable
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        parts, made = (t.split(ROWS) for t in (q * scale, k, v)), []
        for queries, keys, values in zip(*parts, strict=True):
            maps, first = [], 0
            for end in (end for end in ends if end <= q.shape[2]):
                scores = queries[:, :, first:end] @ keys[:, :, :end].mT
                if first == 0:
                    scores = scores + hidden[:, :, :end, :end]
                maps.append(scores.softmax(dim=-1) @ values[:, :, :end])
                first = end
            made.append(torch.cat(maps, dim=2))
        return torch.cat(made)

    return attend


def levels(schedule: Schedule) -> Tensor:
    """The map of every token, (L,)."""
    return torch.cat([torch.full((scale.tokens,), scale.k) for scale in schedule])


class Teacher(NamedTuple):
    """What every teacher-forced pass needs: (1, 1, L, L) mask, angles, maps (L,), weights (L,)."""

    mask: Tensor
    rotary: Rotary
    level: Tensor
    weight: Tensor

    @classmethod
    def of(cls, model: Infinity, schedule: Schedule, device: torch.device) -> Teacher:
        level = levels(schedule).to(device)
        weight = torch.cat([torch.full((s.tokens,), s.tokens**-0.5) for s in schedule]).to(device)
        mask = (level[:, None] >= level)[None, None]
        return cls(mask, whole_rotary(model, schedule, device), level, weight / weight.mean())


def forward(
    model: Infinity, teacher: Teacher, rows: list[Tensor], inputs: Tensor, longest: int
) -> Tensor:
    """Logits (B, L, bits, 2) of all maps at once.

    rows: text features (length, Ct) of each picture; longest: length to pad them to, so that every
    batch has the same shapes.
    """
    state = model.start(model.schedule(), len(model.schedule()), guided=False)
    model.condition(state, Text(rows))
    lengths = torch.tensor([len(row) for row in rows], device=inputs.device)
    mask = (torch.arange(longest, device=inputs.device) < lengths[:, None])[:, None, None]
    text = F.pad(state.text, (0, 0, 0, longest - state.text.shape[1]))
    start = state.condition.unsqueeze(1) + model.pos_start
    x = torch.cat((start, model.word_embed(inputs).float()), dim=1) + model.lvl_embed(teacher.level)
    for block in model.blocks:
        x = block(x, block.prepare(state.terms, text), mask, None, teacher.rotary, teacher.mask)
    return model.logits(state, x).float().unflatten(-1, (-1, 2))


def losses(
    logits: Tensor, targets: Tensor, teacher: Teacher, cost: Tensor | None = None
) -> dict[str, Tensor]:
    """Cross-entropy of the bits, with weight n^-1/2 for a map of n tokens; accuracy of each map.

    cost: (B, L, bits), of a wrong bit; None: of all alike.
    """
    error = F.cross_entropy(logits.movedim(-1, 1), targets.long(), reduction="none")
    if cost is not None:
        error = error * cost
    error = error.mean(dim=(0, 2))
    right = (logits.argmax(dim=-1) == targets).float().mean(dim=(0, 2))
    by_map = {f"map {k}": right[teacher.level == k].mean() for k in range(teacher.level.max() + 1)}
    return {"loss": (error * teacher.weight).mean(), "nats": error.mean()} | by_map
