"""What a batch of pictures shows: class labels, or text.

Both know how many pictures they are, their device, and the condition of each picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """Class labels (B,), from 0."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def split(self) -> list[Labels]:
        """The condition of every picture alone."""
        return [Labels(label) for label in self.labels.split(1)]

    def repeat(self, count: int) -> Labels:
        """The condition of ``count`` pictures, each the first of these."""
        return Labels(self.labels[:1].expand(count))


@dataclass(frozen=True, eq=False)
class Text:
    """Text features: a tensor (length, Ct) a picture, padding dropped."""

    positive: Sequence[Tensor]
    negative: Sequence[Tensor] | None = None  # to steer away from; None: the model's own rows

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def device(self) -> torch.device:
        return self.positive[0].device

    def split(self) -> list[Text]:
        """The condition of every picture alone."""
        negatives = self.negative or [None] * len(self)
        return [
            Text([positive], None if negative is None else [negative])
            for positive, negative in zip(self.positive, negatives, strict=True)
        ]

    def repeat(self, count: int) -> Text:
        """The condition of ``count`` pictures, each the first of these."""
        one = self.split()[0]
        return Text(one.positive * count, one.negative and one.negative * count)


Condition = Labels | Text
