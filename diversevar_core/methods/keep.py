"""Keep tokens of a given image: variations and inpainting.

VAR's zero-shot editing, arXiv 2404.02905, section 5.3: a kept token replaces the one that was
drawn, so that all later maps depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UserError
from ..resize import area
from ..sampling.method import Context, Method
from ..schedule import Scale


@dataclass(frozen=True, eq=False)
class Keep(Method):
    """Keep an image's tokens in the maps up to ``side``, and outside ``mask`` in all maps."""

    maps: Sequence[Tensor]  # tokens (1 or B, n) or bits (1 or B, n, bits) of every map
    side: int = 0  # maps up to this side are kept whole; 0 keeps none
    mask: Tensor | None = None  # (1 or B, H, W), above 0 where tokens are drawn; None: everywhere
    order = 3

    @property
    def alike(self) -> bool:
        """Whether one image and one mask are for the whole batch."""
        return all(len(one) == 1 for one in (*self.maps, self.mask) if one is not None)

    def begin(self, context: Context) -> Keep:
        """Raises UserError if the maps do not fit the schedule or the batch."""
        ours, theirs = [m.shape[1] for m in self.maps], [s.tokens for s in context.schedule]
        if ours != theirs:
            raise UserError(
                f"The encoded image has token maps of {ours} tokens, but this image's have "
                f"{theirs}; encode it with this model and the same shape."
            )
        images = list(context.images)
        given = {
            "images": self.maps[0],
            "masks": self.maps[0] if self.mask is None else self.mask,
        }
        for what, many in given.items():
            if 1 != len(many) <= max(images):
                raise UserError(
                    f"There are {len(many)} {what} to keep and more images are drawn; give one "
                    "for all, or one for each. Diverse starts need one for all."
                )
        mask, device = self.mask, context.condition.device
        if mask is not None:
            mask = (mask if len(mask) == 1 else mask[images]).to(device, torch.float32)
        maps = [(m if len(m) == 1 else m[images]).to(device) for m in self.maps]
        return replace(self, maps=maps, mask=mask)

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        kept = self.maps[scale.k].to(tokens)
        if scale.side <= self.side:
            return kept.expand_as(tokens)
        if self.mask is None:
            return tokens
        # a token is drawn where the mask covers any part of it
        drawn = area(self.mask[:, None], scale.h, scale.w).flatten(1) > 0
        return torch.where(drawn if tokens.ndim == 2 else drawn[..., None], tokens, kept)
