"""What a batch of images shows: class labels, or text and, for editing, a source image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """Class labels (B,), from 0; one more than the last is none, as for guidance."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def alike(self) -> bool:
        """Whether all images have the same label."""
        return bool((self.labels == self.labels[0]).all())

    def split(self) -> list[Labels]:
        """The conditions of the single images."""
        return [Labels(label) for label in self.labels.split(1)]

    def repeat(self, count: int) -> Labels:
        """The first image's condition, for ``count`` images."""
        return Labels(self.labels[:1].expand(count))


@dataclass(frozen=True, eq=False)
class Text:
    """Text features: a tensor (length, Ct) for each image, without padding.

    source: the images to edit, as the VAE's features before quantization (1 or B, d, H, W);
    one for all, or one for each.
    """

    positive: Sequence[Tensor]
    negative: Sequence[Tensor] | None = None  # None: the model's learned one
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def device(self) -> torch.device:
        return self.positive[0].device

    @property
    def alike(self) -> bool:
        """Whether all images have the same text, negative text and source."""
        texts = [self.positive, *([self.negative] if self.negative else [])]
        same = all(t is text[0] or torch.equal(t, text[0]) for text in texts for t in text)
        return same and (self.source is None or len(self.source) == 1)

    def split(self) -> list[Text]:
        """The conditions of the single images."""
        negatives = self.negative or [None] * len(self)
        sources = [None] * len(self)
        if self.source is not None:
            sources = self.source.expand(len(self), -1, -1, -1).split(1)
        return [
            Text([positive], None if negative is None else [negative], source)
            for positive, negative, source in zip(self.positive, negatives, sources, strict=True)
        ]

    def repeat(self, count: int) -> Text:
        """The first image's condition, for ``count`` images."""
        first = self.split()[0]
        negative = first.negative and first.negative * count
        return Text(first.positive * count, negative, first.source)


Condition = Labels | Text
