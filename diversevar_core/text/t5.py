"""The encoder of T5: token ids -> features.

T5, arXiv 1910.10683, and its gated form (T5 1.1, flan-T5). Module names are those of Hugging Face's
checkpoints. The residual stream, norms and softmax are float32; layers compute in ``dtype``.
``transformers`` has the same encoder, but takes 2 s to import, more than a whole picture of the
included model on the command line (1.4 s); ComfyUI's nodes use ComfyUI's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import check_range
from ..models import layers
from ..shapes import depth_of, shape_of

EPS = 1e-6
MAX_DISTANCE = 128  # tokens; all larger distances share a bucket


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder, by the names in Hugging Face's configurations.

    d_kv: channels of a head; d_ff: of the feed-forward layer; is_gated_act: a gated feed-forward
    layer with tanh GELU (T5 1.1) rather than ReLU; buckets: of relative positions.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    is_gated_act: bool
    buckets: int


def read_config(tensors: Mapping[str, Tensor]) -> T5Config:
    """Read a T5 encoder's sizes off its tensors' shapes.

    Raises KeyError if a tensor is missing, UserError if a shape is not a T5's.
    """
    layer = "encoder.block.0.layer"
    vocabulary, width = shape_of(tensors, "shared.weight", 2)
    biases = f"{layer}.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = shape_of(tensors, biases, 2)
    check_range("its number of buckets of relative positions", buckets, 4)
    gated = f"{layer}.1.DenseReluDense.wi_0.weight" in tensors
    hidden = f"{layer}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shape_of(tensors, f"{layer}.0.SelfAttention.q.weight", 2)[0] // heads,
        d_ff=shape_of(tensors, hidden, 2)[0],
        num_layers=depth_of(tensors, "encoder.block."),
        num_heads=heads,
        is_gated_act=gated,
        buckets=buckets,
    )


def relative_buckets(tokens: int, buckets: int) -> Tensor:
    """The bucket (n, n) of the distance from each token to each other one.

    Half of the buckets are for later tokens, half for earlier ones. In each half, the first half
    holds one distance each, the others ranges that grow by a constant factor to ``MAX_DISTANCE``.
    """
    position = torch.arange(tokens)
    ahead = position[None, :] - position[:, None]
    distance, half = ahead.abs(), buckets // 2
    near = half // 2
    growth = torch.log(distance.clamp(min=1).float() / near) / math.log(MAX_DISTANCE / near)
    far = (near + (growth * (half - near)).long()).clamp(max=half - 1)
    return torch.where(distance < near, distance, far) + half * (ahead > 0)


class Norm(nn.Module):
    """Root-mean-square norm, float32."""

    def __init__(self, width: int, **factory):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x), eps=EPS)


class SelfAttention(nn.Module):
    """Attention with a bias by relative position and no scale; the first block holds the biases."""

    def __init__(self, config: T5Config, first: bool, operations: ModuleType, **factory):
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.heads = config.num_heads
        for name in ("q", "k", "v"):
            self.add_module(name, operations.Linear(width, inner, bias=False, **factory))
        self.o = operations.Linear(inner, width, bias=False, **factory)
        if first:
            self.relative_attention_bias = operations.Embedding(
                config.buckets, config.num_heads, **factory
            )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C); bias (heads, n, n) float32."""
        q, k, v = (
            rearrange(layer(x), "b n (h c) -> b h n c", h=self.heads)
            for layer in (self.q, self.k, self.v)
        )
        weights = ((q @ k.mT).float() + bias).softmax(-1)
        return self.o(rearrange(weights.to(v) @ v, "b h n c -> b n (h c)"))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear; or gated, with one Linear's tanh GELU times another."""

    def __init__(self, config: T5Config, operations: ModuleType, **factory):
        super().__init__()
        for name in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
            linear = operations.Linear(config.d_model, config.d_ff, bias=False, **factory)
            self.add_module(name, linear)
        # the products overflow float16
        self.wo_dtype = torch.float32 if factory["dtype"] == torch.float16 else factory["dtype"]
        factory = factory | {"dtype": self.wo_dtype}
        self.wo = operations.Linear(config.d_ff, config.d_model, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "wi"):
            return self.wo(F.relu(self.wi(x)).to(self.wo_dtype))
        gate = F.gelu(self.wi_0(x), approximate="tanh").to(self.wo_dtype)
        return self.wo(gate * self.wi_1(x))


class T5Encoder(nn.Module):
    """Token ids (B, n), no padding -> features (B, n, d_model) float32."""

    def __init__(
        self,
        config: T5Config,
        operations: ModuleType = layers,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype
        factory = {"device": device, "dtype": dtype}
        width = config.d_model
        self.shared = operations.Embedding(config.vocab_size, width, **factory)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList()
        for i in range(config.num_layers):
            attention = SelfAttention(config, i == 0, operations, **factory)
            feed_forward = FeedForward(config, operations, **factory)
            parts = {"SelfAttention": attention}, {"DenseReluDense": feed_forward}
            layer = (nn.ModuleDict(part | {"layer_norm": Norm(width, **factory)}) for part in parts)
            self.encoder.block.append(nn.ModuleDict({"layer": nn.ModuleList(layer)}))
        self.encoder.final_layer_norm = Norm(width, **factory)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.shared(ids.to(self.shared.weight.device)).float()
        biases = self.encoder.block[0]["layer"][0]["SelfAttention"].relative_attention_bias
        buckets = relative_buckets(ids.shape[1], self.config.buckets).to(x.device)
        bias = rearrange(biases(buckets), "n m h -> h n m").float()
        for block in self.encoder.block:
            attention, feed_forward = block["layer"]
            normed = attention["layer_norm"](x).to(self.dtype)
            x = x + attention["SelfAttention"](normed, bias).float()
            normed = feed_forward["layer_norm"](x).to(self.dtype)
            x = x + feed_forward["DenseReluDense"](normed).float()
        return self.encoder.final_layer_norm(x)
