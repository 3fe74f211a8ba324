"""Fine-tune the emoji model to edit pictures by instruction: ``python -m training.edits``.

VAREdit, arXiv 2508.15772: the source picture's features pass through all blocks before the first
map; in the first block, maps attend to the source's keys and values resized to each map's size, in
the others to all of them. Here source and maps are one teacher-forced sequence. Resumes from its
checkpoint.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.conditions import Text
from diversevar_core.models.blocks import Attend, Rotary
from diversevar_core.models.infinity import Infinity
from diversevar_core.resize import area
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import Schedule
from diversevar_core.settings import Settings
from diversevar_core.vae.bsq import BSQ

from .data import contact_sheet, load
from .edits_data import Edit, Maker, Pool, all_instructions, load_pool, offered, trained
from .loop import Log, autocast, learning_rate
from .teacher import levels, losses, self_correcting
from .text import tokenize
from .tokenizer import to_pixels
from .transformer import WarmRun, export, read

BATCH, PEAK, WARMUP, SEED = 32, 1.5e-3, 50, 2
LONGEST = 16  # text tokens of a training batch


class ResizedSource:
    """Used as the first block's cache: adds the source's keys and values at every map's size,
    area-resized from the last map's."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attend) -> Tensor:
        """Attention to keys and values (rows, heads, source + maps, c) and the resized source's."""
        return attention(q, self.extended(k).to(v.dtype), self.extended(v))

    def extended(self, x: Tensor) -> Tensor:
        """Keys or values, followed by the resized source's."""
        last = self.schedule[-1]
        source = rearrange(x[:, :, : last.tokens], "r n (h w) c -> r (n c) h w", h=last.h)
        copies = [area(source, scale.h, scale.w) for scale in self.schedule]
        heads = x.shape[1]
        resized = [rearrange(copy, "r (n c) h w -> r n (h w) c", n=heads) for copy in copies]
        return torch.cat((x, *resized), dim=2)


class Teacher(NamedTuple):
    """What every pass needs, for S source tokens and L tokens of the maps.

    first: mask (1, 1, S + L, S + L + L) of the first block, whose last keys are the resized
    source's; mask: (1, 1, S + L, S + L) of the others; rotary: of source and maps; level (L,);
    weight (L,) of each token's loss.
    """

    first: Tensor
    mask: Tensor
    rotary: Rotary
    level: Tensor
    weight: Tensor

    @classmethod
    def of(cls, model: Infinity, schedule: Schedule) -> Teacher:
        level, source = levels(schedule), schedule[-1].tokens
        causal = level[:, None] >= level
        own = level[:, None] == level
        n, m = source, len(level)
        first = torch.zeros(n + m, n + m + m, dtype=torch.bool)
        first[:n, :n] = True
        first[n:, n : n + m] = causal
        first[n:, n + m :] = own
        mask = torch.zeros(n + m, n + m, dtype=torch.bool)
        mask[:, :n] = True
        mask[n:, n:] = causal
        weight = torch.cat([torch.full((s.tokens,), s.tokens**-0.5) for s in schedule])
        rotary = model.rotary_table(model.positions_of_edit(schedule[-1]), torch.device("cpu"))
        return cls(first[None, None], mask[None, None], rotary, level, weight / weight.mean())


def forward(
    model: Infinity,
    teacher: Teacher,
    rows: list[Tensor],
    source: Tensor,
    inputs: Tensor,
    longest: int = LONGEST,
) -> Tensor:
    """Logits (B, L, bits, 2) of all maps at once.

    rows: text features (length, Ct) of each picture, padded to ``longest``; source (B, d, h, w):
    encoder features; inputs (B, L - 1, bits): of all maps but the first.
    """
    schedule = model.schedule()
    state = model.start(schedule, len(schedule), guided=False)
    model.condition(state, Text(rows))
    lengths = torch.tensor([len(row) for row in rows])
    text_mask = (torch.arange(longest) < lengths[:, None])[:, None, None]
    text = F.pad(state.text, (0, 0, 0, longest - state.text.shape[1]))
    start = state.condition.unsqueeze(1) + model.pos_start
    tokens = rearrange(source, "b d h w -> b (h w) d")
    words = model.word_embed(torch.cat((tokens, inputs), dim=1)).float()
    n = tokens.shape[1]
    level = torch.cat((torch.full((n,), schedule[-1].k), teacher.level))
    x = torch.cat((words[:, :n], start, words[:, n:]), dim=1) + model.lvl_embed(level)
    for i, block in enumerate(model.blocks):
        cache, mask = (ResizedSource(schedule), teacher.first) if i == 0 else (None, teacher.mask)
        x = block(x, block.prepare(state.terms, text), text_mask, cache, teacher.rotary, mask)
    return model.logits(state, x[:, n:]).float().unflatten(-1, (-1, 2))


def sample_edits(
    model: Infinity,
    tokenizer: BSQ,
    rows: list[Tensor],
    source: Tensor,
    cfg: float,
    tau: float,
    seed: int,
) -> Tensor:
    """Edit every source (B, d, h, w) by its instruction, with seeds from ``seed`` on; uint8."""
    settings = Settings((cfg,), "flat", (tau,), 0, 0.97)
    text, seeds = Text(rows, source=source), range(seed, seed + len(rows))
    *_, last = sample(model, tokenizer, text, model.schedule(), settings, seeds)
    return to_pixels(tokenizer.decode(last.f_hat))


def cells(pool: Pool, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """Encoder features (B, d, h, w) of the edits' sources and targets, float32."""
    return tuple(
        pool.features[[pool.row(cell) for cell in chosen]].float()
        for chosen in zip(*((edit.source, edit.target) for edit in edits), strict=True)
    )


@torch.compiler.set_stance("force_eager")
def sample_sheet(run: WarmRun, tokenizer: BSQ, pool: Pool, maker: Maker, path: Path) -> None:
    """Save a grid of held out edits, 8 of each kind: source, target and two samples."""
    rng = random.Random(SEED)
    edits = [maker.draw(kind, rng, held_out=True) for kind in trained() for _ in range(8)]
    source, _ = cells(pool, edits)
    rows = run.text()([edit.instruction for edit in edits])
    shown = [pool.pictures([e.source for e in edits]), pool.pictures([e.target for e in edits])]
    for seed in (0, 1):
        shown.append(sample_edits(run.average["model"], tokenizer, rows, source, 2.0, 0.7, seed))
    sheet = torch.stack(shown).unflatten(1, (-1, 8)).permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
    contact_sheet(sheet.numpy(), 32).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.edits", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--start", type=Path, default=Path("models/emoji-small"))
    parser.add_argument("--folder", type=Path, default=Path("edit-training"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--export", type=Path, help="only write the checkpoint's weights here")
    args = parser.parse_args()

    data = load(args.data)
    run, checkpoint = WarmRun(args.start, all_instructions(data)), args.folder / "edits.ckpt"
    run.resume(checkpoint)
    run.average["model"].edits = True  # for sampling; training uses ``forward``
    if args.export:
        export(run.average["model"], run.text(), args.export, offered(), task="edit")
        return

    tokenizer = load_vae(args.start / "vae.safetensors")
    pool = load_pool(data, tokenizer, args.folder / "pool.pt")
    maker, model = Maker(pool), run.models["model"]
    schedule = model.schedule()
    teacher = Teacher.of(model, schedule)
    for block in model.blocks[1:]:
        block.compile()
    log = Log(every=25)
    kinds = trained()
    while run.step < args.steps:
        rng = random.Random(SEED + run.step)
        generator = torch.Generator().manual_seed(SEED + run.step)
        edits = [
            maker.draw(kind, rng) for kind in rng.choices(list(kinds), kinds.values(), k=BATCH)
        ]
        source, target = cells(pool, edits)
        ids, lengths = tokenize(run.words, [edit.instruction for edit in edits])
        batch = self_correcting(tokenizer, target, schedule, generator)
        with autocast():
            rows = read(run.models, ids, lengths, generator)
            logits = forward(model, teacher, rows, source, batch.inputs)
        parts = losses(logits, batch.targets, teacher)
        run.update(parts["loss"], learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {name: part.detach() for name, part in parts.items()})
        if run.step % 50 == 0 or run.step == args.steps:
            run.save(checkpoint)
        if run.step % 500 == 0:
            sheet = args.folder / f"edits-{run.step:05d}.png"
            sample_sheet(run, tokenizer, pool, maker, sheet)


if __name__ == "__main__":
    main()
