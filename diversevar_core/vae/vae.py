"""The interface of all VAEs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..schedule import Scale, Schedule
from ..tokens import TokenKind


class VAE(nn.Module):
    """Images <-> token maps; ``vae.VAES`` lists all VAEs.

    Constructor arguments: the result of ``read_config``, operations (a module with the layer
    classes), device, dtype. Where one token covers p x p positions (Infinity-8B), it has p**2
    times the bits.
    """

    name: str
    token_kind: TokenKind
    stride: int  # pixels along the side of one position

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        """Whether a state dict with these keys is this VAE's."""
        raise NotImplementedError

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> the module's; the same unless a VAE overrides this."""
        return dict(state_dict)

    @classmethod
    def read_config(cls, state_dict: Mapping[str, Tensor]) -> object:
        """Read the sizes off a renamed state dict; KeyError if a tensor is missing."""
        raise NotImplementedError

    def features(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in -1..1 -> features before quantization (B, D, h, w), float32."""
        raise NotImplementedError

    def quantize_maps(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        """Features (B, D, H, W) -> tokens (B, n), or bits (B, n, bits), of every map."""
        raise NotImplementedError

    def accumulate(
        self, f_hat: Tensor | None, tokens: Tensor, scale: Scale
    ) -> tuple[Tensor, Tensor | None]:
        """Add one map to the sum.

        f_hat: the sum of the coarser maps (B, D, H, W), None before the first. Returns the new
        sum and the next map's input features (B, n, channels), None at the end.
        """
        raise NotImplementedError

    def decode(self, f_hat: Tensor) -> Tensor:
        """The sum (B, D, h, w) -> image (B, 3, h * stride, w * stride), about -1..1."""
        raise NotImplementedError
