"""VAR: class-conditional next-scale prediction over codebook indices.

Visual Autoregressive Modeling, arXiv 2404.02905; ``models/var.py`` of FoundationVision/VAR.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Labels
from ..errors import UserError
from ..schedule import Scale, Schedule, checked_sides, fixed, square
from ..settings import Settings
from ..shapes import check_heads, depth_of, shape_of
from ..tokens import TokenKind
from .attention import Attention, sdpa
from .blocks import FeedForward, Fixed, HeadNorm, KVCache, SelfAttention, Terms, terms_of
from .family import Family, State

# (scales K, tokens L) of the official releases -> sides of their maps
RELEASED_SIDES = {
    (10, 680): (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 256 pixels
    (10, 2240): (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),  # 512 pixels
}


@dataclass(frozen=True)
class VARConfig:
    """Sizes of a VAR transformer, and the sides of its token maps.

    features: channels D of the VAE's features; codebook: its rows V; shared_ada: one
    condition projection for all blocks (the 512-pixel release).
    """

    width: int
    depth: int
    heads: int
    classes: int
    features: int
    codebook: int
    sides: tuple[int, ...]
    shared_ada: bool


class Prepared(NamedTuple):
    """What a block computes once from the condition, for all maps."""

    terms: Terms
    fixed: Fixed


class Block(nn.Module):
    """Self-attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, config: VARConfig, attention: Attention, operations: ModuleType, **factory):
        super().__init__()
        width = config.width
        self.dtype = factory["dtype"]
        self.attn = SelfAttention(width, config.heads, attention, operations, **factory)
        self.ffn = FeedForward(width, 4 * width, operations, **factory)
        if config.shared_ada:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width, **factory))
        else:
            linear = operations.Linear(width, 6 * width, **factory)
            self.ada_lin = nn.Sequential(nn.SiLU(), linear)

    def prepare(self, state: State) -> Prepared:
        """Compute ``Prepared`` from the state's condition."""
        if state.terms is not None:
            terms = self.ada_gss.to(state.terms) + state.terms
        else:
            flat = self.ada_lin(state.condition.to(self.dtype)).float()
            terms = rearrange(flat, "r (six c) -> r 1 six c", six=6)
        return Prepared(terms_of(terms), self.attn.fixed(state.condition.device))

    def forward(self, x: Tensor, prepared: Prepared, cache: KVCache) -> Tensor:
        """(rows, n, C) -> (rows, n, C), float32."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = prepared.terms
        x = torch.addcmul(x, self.attn(x, (scale1, shift1), prepared.fixed, cache), gamma1)
        return torch.addcmul(x, self.ffn(x, (scale2, shift2)), gamma2)


class VAR(Family):
    """The transformer; parameter names are those of the official checkpoints."""

    name = "VAR"
    reads = Labels

    def __init__(
        self,
        config: VARConfig,
        operations: ModuleType = nn,
        attention: Attention = sdpa,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.token_kind = TokenKind(config.codebook, config.features)
        self.depth, self.width = config.depth, config.width
        factory = {"device": device, "dtype": dtype}
        width, maps = config.width, square(config.sides)
        self.word_embed = operations.Linear(config.features, width, **factory)
        self.class_emb = operations.Embedding(config.classes + 1, width, **factory)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.pos_1LC = nn.Parameter(torch.empty(1, sum(m.tokens for m in maps), width, **factory))
        self.lvl_embed = operations.Embedding(len(maps), width, **factory)
        if config.shared_ada:
            linear = operations.Linear(width, 6 * width, **factory)
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), linear)
        self.blocks = nn.ModuleList(
            Block(config, attention, operations, **factory) for _ in range(config.depth)
        )
        self.head_nm = HeadNorm(width, operations, device)
        self.head = operations.Linear(width, config.codebook, device=device, dtype=torch.float32)

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        return {"pos_1LC", "word_embed.weight"} <= set(keys)

    @classmethod
    def read_config(
        cls, state_dict: Mapping[str, Tensor], facts: Mapping[str, object]
    ) -> VARConfig:
        """Read the sizes off an official state dict's shapes, sides from ``facts["patch_nums"]``.

        Without that entry, the sides are those of the release with as many maps and tokens. Raises
        UserError if there is no such release, KeyError if a tensor is missing.
        """
        maps, width = shape_of(state_dict, "lvl_embed.weight", 2)
        _, tokens, _ = shape_of(state_dict, "pos_1LC", 3)
        sides = facts.get("patch_nums")
        if sides is None:
            sides = RELEASED_SIDES.get((maps, tokens), ())
        else:
            sides = checked_sides(sides, "patch_nums")
        if len(sides) != maps or sum(s * s for s in sides) != tokens:
            raise UserError(
                f"no official release has {maps} token maps of {tokens} tokens together; put "
                '{"patch_nums": [...]} with the sides of its maps into a .json file next to it'
            )
        attention = "blocks.0.attn."
        if attention + "q_bias" in state_dict and attention + "scale_mul_1H11" not in state_dict:
            raise UserError("it was trained without attn_l2_norm, and only models with it can run")
        heads = state_dict[attention + "scale_mul_1H11"].numel()
        check_heads(width, heads)
        return VARConfig(
            width=width,
            depth=depth_of(state_dict),
            heads=heads,
            classes=shape_of(state_dict, "class_emb.weight", 2)[0] - 1,
            features=shape_of(state_dict, "word_embed.weight", 2)[1],
            codebook=shape_of(state_dict, "head.weight", 2)[0],
            sides=sides,
            shared_ada="shared_ada_lin.1.weight" in state_dict,
        )

    def defaults(self) -> Settings:
        """The settings of the official demo."""
        return Settings(cfg=(4.0,), cfg_schedule="ramp", tau=(1.0,), top_k=900, top_p=0.95)

    def schedule(self, aspect: float = 1.0, pixels: str | None = None) -> Schedule:
        return fixed(self.config.sides, aspect, pixels)

    def condition(self, state: State, condition: Labels) -> None:
        labels, classes = condition.labels, self.config.classes
        if not 0 <= labels.min() <= labels.max() <= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(
                f"There is no class {wrong}; the last is {classes - 1}, and {classes} is none."
            )
        if state.guided:
            labels = torch.cat((labels, torch.full_like(labels, classes)))
        state.condition = self.class_emb(labels).float()
        if self.config.shared_ada:
            flat = self.shared_ada_lin(state.condition.to(self.dtype)).float()
            state.terms = rearrange(flat, "r (six c) -> r 1 six c", six=6)
        state.prepared.clear()

    def positions(self, state: State, scale: Scale) -> Tensor:
        level = self.lvl_embed(torch.full((1,), scale.k, device=state.condition.device))
        position = self.pos_1LC[:, scale.begin : scale.begin + scale.tokens]
        return level.to(state.condition) + position.to(state.condition)

    def block(
        self, state: State, i: int, scale: Scale, x: Tensor, token_index: Tensor | None = None
    ) -> Tensor:
        if i not in state.prepared:
            state.prepared[i] = self.blocks[i].prepare(state)
        return self.blocks[i](x, state.prepared[i], state.caches[i])
