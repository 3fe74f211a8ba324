"""Infinity: text to image, and image to image, by next-scale prediction of bits.

Infinity, arXiv 2412.04431; ``infinity/models`` of FoundationVision/Infinity, with the options that
its releases use. VAREdit, arXiv 2508.15772 (``infinity/models`` of HiDream-ai/VAREdit), has weights
with the same names and shapes: before the first map a source image passes through all blocks, and
the maps attend to its keys and values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..conditions import Text
from ..errors import UserError, check_choice, check_range, quote
from ..resize import area
from ..schedule import (
    MAPS,
    PIXELS,
    Scale,
    Schedule,
    checked_sides,
    fixed,
    infinity_schedule,
    nearest_aspect,
    square,
)
from ..settings import Settings
from ..shapes import check_heads, depth_of, shape_of
from ..tokens import TokenKind
from .attention import Attention, sdpa
from .blocks import (
    EPS,
    FeedForward,
    Fixed,
    HeadNorm,
    KVCache,
    Rotary,
    SelfAttention,
    SourceCache,
    Terms,
    terms_of,
)
from .family import Family, State

TASKS = ("generate", "edit")
LEVELS = 15  # rows of lvl_embed
ROTARY_BASE = 10000.0
MOST = 100  # guidance or temperature
RELEASED_PIXELS = {(768, 12): "0.06M"}  # (width, depth) of the releases that are not 1M


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of an Infinity transformer.

    bits: of a token; text: width Ct of the text features; unconditional: rows of the learned
    unconditional text; level_every: the level embedding is added before every so many blocks (the
    depth: before the first only); full_map_positions: whether rotary positions are those of the 1M
    schedule's last map (``rope2d_normalized_by_hw`` 2) or each map's own (0); sides: of the model's
    own square maps, None for the official schedules; pixels: the budget that it was trained for;
    edits: whether it edits a source image (VAREdit); cfg, tau: its own guidance and temperature of
    every map, None for the official one.
    """

    width: int
    depth: int
    heads: int
    bits: int
    text: int
    hidden: int
    unconditional: int
    level_every: int
    full_map_positions: bool
    sides: tuple[int, ...] | None
    pixels: str
    edits: bool = False
    cfg: tuple[float, ...] | None = None
    tau: tuple[float, ...] | None = None


def own_values(
    facts: Mapping[str, object], name: str, maps: int, least: float
) -> tuple[float, ...] | None:
    """A model's own guidance or temperature of each of its maps, if it has. Raises UserError."""
    values = facts.get(name)
    if values is None:
        return None
    good = (
        isinstance(values, list)
        and len(values) == maps
        and all(type(value) in (int, float) and least <= value <= MOST for value in values)
    )
    if not good:
        raise UserError(
            f"{name} must be a number from {least} to {MOST} for each of the {maps} maps of "
            f"patch_nums, not {quote(values)}"
        )
    return tuple(map(float, values))


@dataclass
class InfinityState(State):
    """``State`` with the rotary angles, the text and the source image."""

    rotary_table: Rotary | None = None  # of the source's tokens, then of all maps' tokens
    rotary: Rotary | None = None  # of the current map
    text: Tensor | None = None  # (rows, m, C)
    text_mask: Tensor | None = None  # (rows, 1, 1, m), None if all prompts are equally long
    source: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # keys, values of each block

    @property
    def last(self) -> Scale:
        """The last map of the schedule."""
        return self.schedule[-1]

    def drop_unconditional(self) -> None:
        super().drop_unconditional()
        self.source = [tuple(t.chunk(2)[0].clone() for t in pair) for pair in self.source]


def chunk_place(key: str) -> tuple[int, int] | None:
    """(i, j) of a key block_chunks.i.module.j.*, None for other keys."""
    match = re.match(r"block_chunks\.(\d+)\.module\.(\d+)\.", key)
    return match and (int(match[1]), int(match[2]))


class Prepared(NamedTuple):
    """What a block computes once from the condition, for all maps."""

    terms: Terms
    fixed: Fixed
    memory: tuple[Tensor, Tensor]  # the text's keys and values (rows, heads, m, c)


def resized(x: Tensor, scale: Scale) -> Tensor:
    """Resize keys or values (rows, heads, H*W, c) from the last map's size to this map's."""
    maps = rearrange(x, "r n (h w) c -> r (n c) h w", h=scale.full[0])
    return rearrange(area(maps, scale.h, scale.w), "r (n c) h w -> r n (h w) c", n=x.shape[1])


class CrossAttention(nn.Module):
    """Attention of a map's tokens to the text."""

    def __init__(
        self, width: int, heads: int, attention: Attention, operations: ModuleType, **factory
    ):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.mat_q = operations.Linear(width, width, **factory)
        self.mat_kv = operations.Linear(width, 2 * width, bias=False, **factory)
        self.v_bias = nn.Parameter(torch.empty(width, **factory))
        self.proj = operations.Linear(width, width, **factory)

    def memory(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (rows, m, C) -> keys and values (rows, heads, m, c)."""
        kv = self.mat_kv(text)
        v = kv[..., kv.shape[-1] // 2 :]
        v += self.v_bias.to(v)
        return tuple(rearrange(t, "r m (h c) -> r h m c", h=self.heads) for t in kv.chunk(2, -1))

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q = rearrange(self.mat_q(x), "r n (h c) -> r h n c", h=self.heads)
        mixed = self.attention(q, *memory, mask, q.shape[-1] ** -0.5)
        return self.proj(rearrange(mixed, "r h n c -> r n (h c)"))


def head_of(width: int) -> int:
    """Text channels per head of ``TextPool``, for text features of this width."""
    return 128 if width <= 4096 else 64


class TextPool(nn.Module):
    """Attention pooling with one learned query per head: text (rows, m, Ct) -> (rows, C)."""

    def __init__(
        self, text: int, width: int, attention: Attention, operations: ModuleType, **factory
    ):
        super().__init__()
        heads = text // head_of(width)
        self.attention = attention
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads, **factory))
        self.mat_kv = operations.Linear(text, 2 * width, bias=False, **factory)
        self.v_bias = nn.Parameter(torch.empty(width, **factory))
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        heads = self.mat_q.shape[1]
        k, v = self.mat_kv(text).chunk(2, dim=-1)
        v = v + self.v_bias.to(v)
        k, v = (rearrange(t, "r m (h c) -> r h m c", h=heads) for t in (k, v))
        q = repeat(self.mat_q.to(k), "1 h c -> r h 1 c", r=text.shape[0])
        mixed = self.attention(q, k, v, mask, q.shape[-1] ** -0.5)
        return self.proj(rearrange(mixed, "r h 1 c -> r (h c)"))


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and last modulated."""

    def __init__(
        self, config: InfinityConfig, attention: Attention, operations: ModuleType, **factory
    ):
        super().__init__()
        width = config.width
        self.dtype = factory["dtype"]
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width, **factory))
        self.sa = SelfAttention(width, config.heads, attention, operations, **factory)
        exact = {"device": factory["device"], "dtype": torch.float32}
        self.ca_norm = operations.LayerNorm(width, eps=EPS, **exact)
        self.ca = CrossAttention(width, config.heads, attention, operations, **factory)
        self.ffn = FeedForward(width, config.hidden, operations, **factory)

    def prepare(self, terms: Tensor, text: Tensor) -> Prepared:
        """Compute ``Prepared`` from the condition's terms (rows, 1, 6, C) and text (rows, m, C)."""
        own = terms_of(self.ada_gss.to(terms) + terms)
        return Prepared(own, self.sa.fixed(terms.device), self.ca.memory(text))

    def forward(
        self,
        x: Tensor,
        prepared: Prepared,
        text_mask: Tensor | None = None,
        cache: KVCache | SourceCache | None = None,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(rows, n, C) -> (rows, n, C), float32."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = prepared.terms
        norm1, norm2 = (scale1, shift1), (scale2, shift2)
        x = torch.addcmul(x, self.sa(x, norm1, prepared.fixed, cache, rotary, mask), gamma1)
        x = x + self.ca(self.ca_norm(x).to(self.dtype), prepared.memory, text_mask)
        return torch.addcmul(x, self.ffn(x, norm2), gamma2)


class Infinity(Family):
    """The transformer; parameter names are the official ones, except for ``blocks``."""

    name = "Infinity"
    reads = Text
    state = InfinityState

    def __init__(
        self,
        config: InfinityConfig,
        operations: ModuleType = nn,
        attention: Attention = sdpa,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.token_kind = TokenKind(2, config.bits)
        self.depth, self.width, self.edits = config.depth, config.width, config.edits
        if config.sides is None:
            self.aspects, self.budgets = MAPS, PIXELS
        factory = {"device": device, "dtype": dtype}
        exact = {"device": device, "dtype": torch.float32}
        width = config.width
        self.cfg_uncond = nn.Parameter(torch.empty(config.unconditional, config.text, **factory))
        self.text_norm = nn.Module()
        self.text_norm.weight = nn.Parameter(torch.empty(config.text, **exact))
        self.text_proj_for_sos = nn.Module()
        self.text_proj_for_sos.ca = TextPool(config.text, width, attention, operations, **factory)
        self.text_proj_for_ca = nn.Sequential(
            operations.Linear(config.text, width, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(width, width, **factory),
        )
        self.pos_start = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.lvl_embed = operations.Embedding(LEVELS, width, **factory)
        self.word_embed = operations.Linear(config.bits, width, **factory)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), operations.Linear(width, 6 * width, **exact))
        self.blocks = nn.ModuleList(
            Block(config, attention, operations, **factory) for _ in range(config.depth)
        )
        self.head_nm = HeadNorm(width, operations, device)
        self.head = operations.Linear(width, 2 * config.bits, **exact)

    @classmethod
    def recognises(cls, keys: Collection[str]) -> bool:
        return {"text_norm.weight", "word_embed.weight"} <= set(keys)

    @classmethod
    def rename(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official keys -> this module's: block_chunks.i.module.j becomes blocks.n."""
        places = sorted({chunk_place(key) for key in state_dict} - {None})
        order = {place: n for n, place in enumerate(places)}
        renamed = {}
        for key, tensor in state_dict.items():
            if place := chunk_place(key):
                key = f"blocks.{order[place]}.{key.split('.', 4)[4]}"
            renamed[key] = tensor
        return renamed

    @classmethod
    def read_config(
        cls, state_dict: Mapping[str, Tensor], facts: Mapping[str, object]
    ) -> InfinityConfig:
        """Read the sizes off an official state dict's shapes, and the rest from ``facts``.

        facts: the original constructor's arguments ``add_lvl_embeding_only_first_block``,
        ``rope2d_normalized_by_hw`` and ``pn``; ``patch_nums``, the sides of the model's own maps;
        ``cfg_list`` and ``tau_list``, their guidance and temperature; ``task``, generate or edit.
        Defaults are those of the text-to-image releases. Raises KeyError if a tensor is missing,
        UserError if a size or a fact is not valid.
        """
        places = {chunk_place(key) for key in state_dict} - {None}
        chunks = len({chunk for chunk, _ in places}) or 1
        state_dict = cls.rename(state_dict)
        depth = depth_of(state_dict)
        only_first = facts.get("add_lvl_embeding_only_first_block", 1)
        positions = facts.get("rope2d_normalized_by_hw", 2)
        check_choice("rope2d_normalized_by_hw", positions, (0, 2))
        width, bits = shape_of(state_dict, "word_embed.weight", 2)
        heads = state_dict["blocks.0.sa.scale_mul_1H11"].numel()
        check_heads(width, heads, 4)  # pairs of channels, for rows and for columns
        (text,) = shape_of(state_dict, "text_norm.weight", 1)
        check_heads(width, text // head_of(width))
        sides = facts.get("patch_nums")
        if sides is not None:
            sides = checked_sides(sides, "patch_nums")
            check_range("the number of patch_nums", len(sides), 1, LEVELS)
        maps = len(sides or ())
        pixels = facts.get("pn") or RELEASED_PIXELS.get((width, depth), "1M")
        check_choice("pn", pixels, PIXELS)
        return InfinityConfig(
            width=width,
            depth=depth,
            heads=heads,
            bits=bits,
            text=text,
            hidden=shape_of(state_dict, "blocks.0.ffn.fc1.weight", 2)[0],
            unconditional=shape_of(state_dict, "cfg_uncond", 2)[0],
            level_every=depth if only_first else depth // chunks,
            full_map_positions=positions == 2,
            sides=sides,
            pixels=pixels,
            edits=facts.get("task") == "edit",
            cfg=own_values(facts, "cfg_list", maps, 0),
            tau=own_values(facts, "tau_list", maps, 0.001),
        )

    def defaults(self) -> Settings:
        """The settings of the official 2B script; for editing, of VAREdit's README.

        A model with its own maps may have its own guidance and temperature of each.
        """
        cfg, tau = (3.0, 0.1) if self.edits else (4.0, 0.5)
        cfg, tau = self.config.cfg or (cfg,), self.config.tau or (tau,)
        return Settings(cfg=cfg, cfg_schedule="flat", tau=tau, top_k=900, top_p=0.97)

    def schedule(self, aspect: float = 1.0, pixels: str | None = None) -> Schedule:
        if self.config.sides is None:
            return infinity_schedule(aspect, pixels or self.config.pixels)
        return fixed(self.config.sides, aspect, pixels)

    def grid(self, scale: Scale) -> tuple[int, int]:
        """Height and width of the grid of positions."""
        if self.config.full_map_positions:
            return MAPS[nearest_aspect(scale.full[0] / scale.full[1])][-1]
        return scale.full

    def grid_positions(self, scale: Scale) -> Tensor:
        """Row and column of each token of one map, (h * w, 2)."""
        rows, columns = torch.arange(scale.h).float(), torch.arange(scale.w).float()
        if self.config.full_map_positions:
            h, w = self.grid(scale)
            rows, columns = (rows * (h / scale.h)).round(), (columns * (w / scale.w)).round()
        return torch.cartesian_prod(rows, columns)

    def positions_of_edit(self, last: Scale) -> Tensor:
        """Row and column of the source's tokens, then of all maps' tokens, (n, 2).

        The table is the same for every pixel budget: first the last map of the 1M schedule, moved
        by its own size, for the source; then the maps of the 1M schedule. As in the original, it is
        read without gaps: below 1M, source and maps have fewer tokens and use earlier rows.
        """
        sides = self.config.sides
        maps = infinity_schedule(last.h / last.w) if sides is None else square(sides)
        source = self.grid_positions(maps[-1]) + torch.tensor(self.grid(maps[-1]))
        return torch.cat((source, *(self.grid_positions(scale) for scale in maps)))

    def rotary_table(self, positions: Tensor, device: torch.device) -> Rotary:
        """Cosines and sines (n, head_dim / 2, 2) of the rotary angles at positions (n, 2).

        Half of the angles depend on the row, half on the column.
        """
        half = self.config.width // self.config.heads // 2
        frequencies = 1.0 / ROTARY_BASE ** (torch.arange(0, half, 2).float() / half)
        angles = (positions[:, :, None] * frequencies).flatten(1)
        return torch.stack((angles.cos(), angles.sin()), dim=-1).to(device)

    def condition(self, state: InfinityState, text: Text) -> None:
        if self.edits and text.source is None:
            raise UserError(
                "This model edits images and was given none; use VAR Edit Image, or "
                "--source, or load a text-to-image model."
            )
        if text.source is not None and not self.edits:
            raise UserError(
                "This Infinity model generates from text and cannot edit an image; load an editing "
                "model, or, if it is one, set task to edit when you load it."
            )
        rows = list(text.positive)
        if state.guided:
            own = [self.cfg_uncond[: len(row)].to(row) for row in text.positive]
            rows += text.negative or own
        for row in rows:
            if row.shape[-1] != self.config.text:
                raise UserError(
                    f"The text features are {row.shape[-1]} wide, but this model reads "
                    f"{self.config.text}; use the text encoder that it was trained with."
                )
        padded = pad_sequence(rows, batch_first=True).float()  # (rows, m, Ct)
        state.text_mask = None
        if len({len(row) for row in rows}) > 1:
            ones = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
            seen = pad_sequence(ones, batch_first=True)
            state.text_mask = rearrange(seen, "r m -> r 1 1 m")
        gain = self.text_norm.weight.to(padded)
        normed = F.rms_norm(padded, padded.shape[-1:], gain, eps=EPS).to(self.dtype)
        state.condition = self.text_proj_for_sos.ca(normed, state.text_mask).float()
        state.text = self.text_proj_for_ca(normed)
        flat = self.shared_ada_lin(state.condition)
        state.terms = rearrange(flat, "r (six c) -> r 1 six c", six=6)
        state.prepared.clear()
        if state.rotary_table is None:
            maps = [self.grid_positions(scale) for scale in state.schedule]
            positions = self.positions_of_edit(state.last) if self.edits else torch.cat(maps)
            state.rotary_table = self.rotary_table(positions, padded.device)
        if self.edits and not state.source:
            self.read_source(state, text)

    def read_source(self, state: InfinityState, text: Text) -> None:
        """Pass the source through all blocks and keep their keys and values for the maps.

        Where all images have the same source and text, only one image's rows are computed.
        """
        last, device = state.last, state.condition.device
        h, w = last.full
        patch = math.isqrt(self.config.bits // text.source.shape[1])
        maps = F.pixel_unshuffle(area(text.source, patch * h, patch * w), patch)
        tokens = rearrange(maps, "b c h w -> b (h w) c")

        rows = slice(None, None, len(text) if text.alike else 1)
        caches = [KVCache(1, last.tokens) for _ in self.blocks]
        own = InfinityState(state.guided, caches, (last,))
        own.terms, own.text = state.terms[rows], state.text[rows]
        own.text_mask = None if state.text_mask is None else state.text_mask[rows]
        own.rotary = state.rotary_table[: last.tokens]

        x = self.word_embed(tokens.to(self.dtype)).float() + self.level(last, device)
        x = x.repeat(len(own.terms) // len(x), 1, 1)
        for i in range(self.depth):
            x = self.block(own, i, last, x)
        state.source = [(cache.k, cache.v) for cache in own.caches]

    def positions(self, state: InfinityState, scale: Scale) -> Tensor:
        begin = scale.begin + (state.last.tokens if self.edits else 0)
        state.rotary = state.rotary_table[begin : begin + scale.tokens]
        return self.level(scale, state.condition.device)

    def block(
        self,
        state: InfinityState,
        i: int,
        scale: Scale,
        x: Tensor,
        token_index: Tensor | None = None,
    ) -> Tensor:
        block, rotary = self.blocks[i], state.rotary
        if token_index is not None:
            rotary = rotary[token_index]
        if i not in state.prepared:
            state.prepared[i] = block.prepare(state.terms, state.text)
        if i > 0 and i % self.config.level_every == 0:
            x = x + self.level(scale, x.device)
        cache = state.caches[i]
        if state.source:
            k, v = state.source[i]
            if i == 0:
                k, v = resized(k, scale), resized(v, scale)
            cache = SourceCache(k, v, cache)
        return block(x, state.prepared[i], state.text_mask, cache, rotary)

    def level(self, scale: Scale, device: torch.device) -> Tensor:
        """The level embedding of one map, (1, C) float32."""
        return self.lvl_embed(torch.full((1,), scale.k, device=device)).float()
