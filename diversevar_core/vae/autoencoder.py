"""The convolutional encoder and decoder that both VAEs share.

The latent-diffusion autoencoder (CompVis/latent-diffusion, as used by FoundationVision/VAR and, in
its flux form without attention, by FoundationVision/Infinity). Module names are those of the VAR
checkpoints; ``bsq.py`` renames Infinity's to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import check_range
from ..shapes import shape_of

ENCODER_BLOCKS = 2  # residual blocks a level; the decoder has one more
MOST_LEVELS = 9  # releases have 5
GROUPS = 32
EPS = 1e-6
ROWS = 16  # of a map, that are added up at once; they fit the cache


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths of the convolutional autoencoder.

    channels: width of every level, from full resolution down; level i+1 works on half the side of
        level i, as long as ``i < halvings``.
    halvings: how often the side is halved; one token covers ``2**halvings`` pixels.
    latent: channels D of the feature map between encoder and decoder.
    attention: self-attention in the deepest level and in the middle (VAR yes, Infinity no).
    """

    channels: tuple[int, ...]
    halvings: int
    latent: int
    attention: bool

    @property
    def stride(self) -> int:
        """Pixels along the side of one token."""
        return 2**self.halvings


def read_config(state_dict: Mapping[str, Tensor]) -> AutoencoderConfig:
    """Read the sizes off the shapes of a state dict with this module's names.

    Raises KeyError if a tensor is missing, UserError if a shape is not an autoencoder's.
    """
    channels = []
    while (key := f"encoder.down.{len(channels)}.block.0.conv1.weight") in state_dict:
        channels.append(shape_of(state_dict, key, 4)[0])
    check_range("the number of its encoder's levels", len(channels), 1, MOST_LEVELS)
    return AutoencoderConfig(
        channels=tuple(channels),
        halvings=sum(
            f"encoder.down.{i}.downsample.conv.weight" in state_dict for i in range(MOST_LEVELS)
        ),
        latent=shape_of(state_dict, "decoder.conv_in.weight", 4)[1],
        attention="encoder.mid.attn_1.qkv.weight" in state_dict,
    )


def norm(channels: int, operations: ModuleType, **factory) -> nn.Module:
    """Group norm of 32 groups (24 where 32 do not divide the width)."""
    groups = GROUPS if channels % GROUPS == 0 else 24
    return operations.GroupNorm(groups, channels, eps=EPS, **factory)


def normed(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    """``layer(x)`` for x (B, C, h, w), exact on large maps too.

    With channels last on a CPU, torch adds up a group's numbers one by one in float32: at 1024
    pixels the result is off by up to 5e-3, by how much depends on the threads, and 2 % of the
    pixels turn. Sums over a few rows, added up in float64, are off by 1e-6; the time of a
    decode at 256 pixels stays, within 2 %.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return layer(x)
    count = x.shape[2] * x.shape[3] * x.shape[1] // layer.num_groups
    sums = torch.zeros(2, *x.shape[:2], dtype=torch.float64)
    for rows in x.split(ROWS, dim=2):
        sums += torch.stack((rows.sum(dim=(2, 3)), rows.square().sum(dim=(2, 3))))
    mean, square = sums.unflatten(-1, (layer.num_groups, -1)).sum(dim=-1, keepdim=True) / count
    # the layer's own weights, which a host may keep elsewhere, from what it makes of -1 and 1
    low, high = layer(x.new_tensor([-1.0, 1.0]).expand(1, x.shape[1], 1, 2)).double()[0, :, 0].T
    weight, bias = (high - low) / 2 * (1 + layer.eps) ** 0.5, (high + low) / 2
    gain = (square - mean**2 + layer.eps).rsqrt() * weight.view(mean.shape[1], -1)
    shift = bias - (mean * gain).flatten(1)
    gain, shift = (part.flatten(1).to(x)[..., None, None] for part in (gain, shift))
    return torch.addcmul(shift, x, gain)


class ResnetBlock(nn.Module):
    """Two normed 3x3 convolutions with a shortcut: (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, channels_in: int, channels_out: int, operations: ModuleType, **factory):
        super().__init__()
        self.norm1 = norm(channels_in, operations, **factory)
        self.conv1 = operations.Conv2d(channels_in, channels_out, 3, padding=1, **factory)
        self.norm2 = norm(channels_out, operations, **factory)
        self.conv2 = operations.Conv2d(channels_out, channels_out, 3, padding=1, **factory)
        if channels_in != channels_out:
            self.nin_shortcut = operations.Conv2d(channels_in, channels_out, 1, **factory)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(normed(self.norm1, x), inplace=True)
        h = self.conv1(h)  # one name for all, so that each tensor is freed early
        h = normed(self.norm2, h)
        h = F.silu(h, inplace=True)
        h = self.conv2(h)
        h += self.nin_shortcut(x)
        return h


class AttnBlock(nn.Module):
    """One head of self-attention over all positions: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, operations: ModuleType, **factory):
        super().__init__()
        self.norm = norm(channels, operations, **factory)
        self.qkv = operations.Conv2d(channels, 3 * channels, 1, **factory)
        self.proj_out = operations.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(normed(self.norm, x)).flatten(2).transpose(1, 2)  # (B, hw, 3 C)
        q, k, v = tokens.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side: pad right and bottom by one, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, operations: ModuleType, **factory):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, operations: ModuleType, **factory):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return doubled_conv(x, self.conv.weight.to(x), self.conv.bias.to(x))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def doubled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``Upsample`` with 4/9 of its multiplications: (B, in, h, w) -> (B, out, 2 h, 2 w).

    After nearest-neighbour doubling, the 3 x 3 pixels under a kernel (out, in, 3, 3) have only
    2 x 2 different values; which of them are equal depends on whether the row and the column are
    even or odd. So four 2 x 2 convolutions of the small map, whose weights are sums of the
    kernel's, give the same result. Without it a decode at 256 pixels takes 17 % longer on a CPU
    with Infinity's VAE and 7 % with VAR's.
    """
    h, w = x.shape[-2:]
    out = torch.empty(
        (len(x), len(weight), 2 * h, 2 * w), dtype=x.dtype, memory_format=torch.channels_last
    )
    padded = F.pad(x, (1, 1, 1, 1))
    for i, rows in enumerate(merged(weight, 2)):
        for j, kernel in enumerate(merged(rows, 3)):
            seen = padded[:, :, i : i + h + 1, j : j + w + 1]
            out[:, :, i::2, j::2] = F.conv2d(seen, kernel, bias)
    return out


def merged(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three weights along an axis -> two, for the even and the odd rows of a doubled map."""
    before, at, after = weight.unbind(dim)
    even, odd = (before, at + after), (before + at, after)
    return torch.stack(even, dim), torch.stack(odd, dim)


def arranged(x: Tensor) -> Tensor:
    """(B, C, h, w); on a CPU with channels last in memory, where convolutions are faster so."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if there is any."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        blocks: int,
        attention: bool,
        operations: ModuleType,
        **factory,
    ):
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.block = nn.ModuleList(
            ResnetBlock(a, b, operations, **factory) for a, b in pairwise(widths)
        )
        self.attn = nn.ModuleList(
            AttnBlock(channels_out, operations, **factory)
            for _ in range(blocks if attention else 0)
        )
        self.downsample = self.upsample = nn.Identity()  # replaced where the resolution changes

    def layers(self) -> Iterator[nn.Module]:
        """The layers in their order; a caller that runs them one by one frees inputs early."""
        for i, block in enumerate(self.block):
            yield block
            if self.attn:
                yield self.attn[i]
        yield self.downsample
        yield self.upsample


class Middle(nn.Module):
    """Residual block, attention (VAR only), residual block."""

    def __init__(self, channels: int, attention: bool, operations: ModuleType, **factory):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, operations, **factory)
        self.attn_1 = AttnBlock(channels, operations, **factory) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, operations, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image (B, 3, H, W) in -1..1 -> feature map (B, D, H / stride, W / stride)."""

    def __init__(self, config: AutoencoderConfig, operations: ModuleType, **factory):
        super().__init__()
        widths = config.channels
        deepest = len(widths) - 1
        self.conv_in = operations.Conv2d(3, widths[0], 3, padding=1, **factory)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            attention = config.attention and i == deepest
            above = widths[max(i - 1, 0)]
            level = Level(above, width, ENCODER_BLOCKS, attention, operations, **factory)
            if i < config.halvings:
                level.downsample = Downsample(width, operations, **factory)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.attention, operations, **factory)
        self.norm_out = norm(widths[-1], operations, **factory)
        self.conv_out = operations.Conv2d(widths[-1], config.latent, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(arranged(x))
        for level in self.down:
            for layer in level.layers():
                x = layer(x)
        return self.conv_out(F.silu(normed(self.norm_out, self.mid(x)), inplace=True))


class Decoder(nn.Module):
    """Feature map (B, D, h, w) -> image (B, 3, h * stride, w * stride), about -1..1."""

    def __init__(self, config: AutoencoderConfig, operations: ModuleType, **factory):
        super().__init__()
        widths = config.channels
        deepest = len(widths) - 1
        self.conv_in = operations.Conv2d(config.latent, widths[-1], 3, padding=1, **factory)
        self.mid = Middle(widths[-1], config.attention, operations, **factory)
        self.up = nn.ModuleList()  # stored from full resolution down, run from the deepest up
        for i, width in enumerate(widths):
            attention = config.attention and i == deepest
            below = widths[min(i + 1, deepest)]
            level = Level(below, width, ENCODER_BLOCKS + 1, attention, operations, **factory)
            if deepest - i < config.halvings and i > 0:
                level.upsample = Upsample(width, operations, **factory)
            self.up.append(level)
        self.norm_out = norm(widths[0], operations, **factory)
        self.conv_out = operations.Conv2d(widths[0], 3, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(arranged(x)))
        for level in reversed(self.up):
            for layer in level.layers():
                x = layer(x)
        x = normed(self.norm_out, x)
        return self.conv_out(F.silu(x, inplace=True))


def to_image(pixels: Tensor) -> Tensor:
    """Decoder output (B, 3, H, W) in about -1..1 -> image in 0..1, clamped."""
    return (pixels.float().clamp(-1, 1) + 1) / 2
