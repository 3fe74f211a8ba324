"""What the sampler asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..models.family import TokenKind
from ..sampling.schedule import Scale, Schedule


class Tokenizer(nn.Module):
    """Images <-> token maps; ``tokenizers.TOKENIZERS`` lists them all.

    It is built from what ``read_config`` returns, operations (where the layer
    classes come from), device and dtype. Where the transformer's tokens are patches of p x p of
    the tokenizer's positions (Infinity-8B), bits have p**2 times the channels.
    """

    name: str
    token_kind: TokenKind
    stride: int  # pixels along the side of one position

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether a state dict with these keys is of this kind."""

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> the module's; the same where a tokenizer does not say otherwise."""
        return dict(state_dict)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> object:
        """Sizes from the shapes of a renamed state dict (KeyError where a tensor is missing)."""

    def features(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in -1..1 -> features before quantization (B, D, h, w), float32."""

    def quantize_maps(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        """Features (B, D, H, W) -> tokens (B, n), or bits (B, n, bits), of every map."""

    def accumulate(
        self, f_hat: Tensor | None, tokens: Tensor, scale: Scale
    ) -> tuple[Tensor, Tensor | None]:
        """Add one map to the sum.

        f_hat: the sum of the coarser maps (B, D, H, W), None before the first. Returns the new
        sum and the next map's input features (B, n, channels), None at the end.
        """

    def decode(self, f_hat: Tensor) -> Tensor:
        """The sum (B, D, h, w) -> image (B, 3, h * stride, w * stride), about -1..1."""
