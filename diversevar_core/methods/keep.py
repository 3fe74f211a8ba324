"""Keep tokens of an image: variations and inpainting.

VAR's zero-shot editing, arXiv 2404.02905, section 5.3: a kept token replaces the one that was
drawn, so that all later maps depend on it. Which tokens a mask keeps is the rule of the authors'
notebook, ``demo_zero_shot_edit.ipynb`` of FoundationVision/VAR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from ..sampling.method import Context, Method
from ..schedule import Scale

# Tokens of a map that a mask keeps whole: the 1 x 1 map colours the whole image. Drawn anew where
# the mask touched them, the first maps left 16 dB of what is outside a small mask, and 36 dB now.
WHOLE_TO = 3


@dataclass(frozen=True, eq=False)
class Keep(Method):
    """Keep an image's tokens in the maps up to ``side``, and outside ``mask`` in all maps."""

    maps: Sequence[Tensor]  # tokens (1 or B, n) or bits (1 or B, n, bits) of every map
    side: int = 0  # maps up to this side are kept whole; 0 keeps none
    mask: Tensor | None = None  # (1 or B, H, W), 1 where tokens are drawn; None: everywhere
    order = 3

    @property
    def alike(self) -> bool:
        """Whether one image and one mask are for the whole batch."""
        return all(len(t) == 1 for t in (*self.maps, self.mask) if t is not None)

    def begin(self, context: Context) -> Keep:
        """Raises UserError if nothing would be drawn."""
        images = list(context.images)
        mask, device = self.mask, context.condition.device
        if mask is not None:
            mask = (mask if len(mask) == 1 else mask[images]).to(device, torch.float32)
            drawn = [drawn_where(mask, scale) for scale in context.schedule]
            if not torch.cat(drawn, dim=1).any(dim=1).all():
                raise UserError(
                    "The mask covers the middle of no token, so nothing could change; draw a "
                    "larger mask."
                )
        maps = [(m if len(m) == 1 else m[images]).to(device) for m in self.maps]
        return replace(self, maps=maps, mask=mask)

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        kept = self.maps[scale.k].to(tokens)
        if scale.side <= self.side:
            return kept.expand_as(tokens)
        if self.mask is None:
            return tokens
        drawn = drawn_where(self.mask, scale)
        return torch.where(drawn if tokens.ndim == 2 else drawn[..., None], tokens, kept)


def drawn_where(mask: Tensor, scale: Scale) -> Tensor:
    """Which tokens of a map a mask (B, H, W) lets be drawn: (B, h * w)."""
    kept = F.interpolate(1 - mask[:, None], (scale.h, scale.w), mode="bilinear").flatten(1) > 0.5
    return torch.zeros_like(kept) if scale.tokens <= WHOLE_TO else ~kept
