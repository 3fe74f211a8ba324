"""Keep a picture's own tokens: variations and inpainting.

Zero-shot editing of VAR, arXiv 2404.02905, section 5.3 (``models/var.py`` of FoundationVision/VAR
resamples what is not kept): where a token is kept, it takes the place of the one that was drawn,
so that all later maps answer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..schedule import Scale, Schedule
from . import Method


@dataclass(frozen=True)
class Keep(Method):
    """Keep the maps up to a side, and everywhere outside a mask.

    maps: tokens (1, n) or bits (1, n, bits) of every map, as the tokenizers encode a picture.
    side: maps of at most this side are kept whole; 0 keeps none. mask: (1, H, W), 1 where the
    picture is painted anew and 0 where it stays; None paints all of it anew.
    """

    maps: Sequence[Tensor]
    side: int = 0
    mask: Tensor | None = None

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError where the picture's maps are not the schedule's."""
        ours, theirs = [m.shape[1] for m in self.maps], [scale.tokens for scale in schedule]
        if ours != theirs:
            raise ValueError(
                f"The encoded picture has token maps of {ours} tokens, but this picture's have "
                f"{theirs}; encode it with this model and the same shape."
            )

    def tokens(self, tokens: Tensor, scale: Scale) -> Tensor:
        kept = self.maps[scale.k].to(tokens)
        if scale.side <= self.side:
            return kept.expand_as(tokens)
        if self.mask is None:
            return tokens
        # a token is painted anew where the mask touches any of its pixels
        anew = F.adaptive_max_pool2d(self.mask[:, None].float(), (scale.h, scale.w)) > 0
        anew = anew.flatten(1).to(tokens.device)
        return torch.where(anew if tokens.ndim == 2 else anew[..., None], tokens, kept)
