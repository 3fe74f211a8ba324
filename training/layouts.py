"""Train a model of layouts from the emoji model: ``python -m training.layouts``.

Its prompts do not say where each of two to four emoji is, how large, and in which design. At 128
pixels its maps are Infinity's at 0.06M, so that sides 4 and 6 are early ones. Train ``tokenizer``
first, then ``transformer``, whose ``--export`` writes its files. Both can be resumed.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.schedule import SQUARE_SIDES, square

from . import layouts_data
from .data import to_model
from .layouts_data import draw_layout, painted
from .loop import Log, autocast, batches, learning_rate
from .sharp import HALF
from .teacher import Teacher, forward, losses, self_correcting
from .text import tokenize
from .tokenizer import fit
from .transformer import SEED, WarmRun, export, read, sample_sheet

SIDES = SQUARE_SIDES[:7]
TOKENIZER_BATCH = 8
POOL = 8192  # layouts that the transformer sees
BATCH, PEAK, WARMUP = 16, 1.5e-3, 50
COARSE, FIRST = 5, 200  # maps of the first steps; after these, two of three steps use them
SAMPLED = (
    "a cat face and a red apple on blue",
    "a panda and a sunflower on white",
    "a pizza, a penguin and a cactus on green",
    "a frog, a mushroom, a crab and a butterfly on yellow",
)


def train_tokenizer(args: argparse.Namespace) -> None:
    """Fine-tune the tokenizer of 64 pixels on layouts; encoder and decoder."""
    objects = layouts_data.load(args.data)
    tokenizer = load_vae(args.half, args.device)
    tokenizer = tokenizer.to(memory_format=torch.channels_last).requires_grad_(True)

    def pictures_at(step: int) -> Tensor:
        first = POOL + step * TOKENIZER_BATCH
        return painted(range(first, first + TOKENIZER_BATCH), objects)[1]

    _, shown = painted(range(24), objects)
    fit(tokenizer, pictures_at, shown, square(SIDES), args.folder, args.steps, ramp=(-1.0, 0.0))


@torch.no_grad()
def load_pool(args: argparse.Namespace) -> Tensor:
    """Encoder features (POOL, d, 16, 16) float16 of the layouts, computed once (minutes)."""
    path = args.folder / "pool.pt"
    if not path.exists():
        objects = layouts_data.load(args.data)
        tokenizer = load_vae(args.folder / "vae.safetensors", args.device)
        found = []
        for first in range(0, POOL, 64):
            _, pictures = painted(range(first, first + 64), objects)
            made = to_model(pictures).to(args.device)
            with autocast(args.device):
                found.append(tokenizer.encoder(made).half().cpu())
        torch.save(torch.cat(found), path)
    return torch.load(path, weights_only=True)


def train_transformer(args: argparse.Namespace) -> None:
    """Fine-tune the included transformer and text encoder on layouts."""
    run = WarmRun(args.start, layouts_data.all_words(), args.device, sides=SIDES)
    checkpoint = args.folder / "transformer.ckpt"
    run.resume(checkpoint)
    if args.export:
        export(run.average["model"], run.text(), args.export)
        return

    pool, device = load_pool(args), torch.device(args.device)
    tokenizer = load_vae(args.folder / "vae.safetensors", device)
    prompts = [draw_layout(random.Random(seed)).prompt for seed in range(POOL)]
    ids, lengths = (t.to(device) for t in tokenize(run.words, prompts))
    model = run.models["model"]
    whole = model.schedule()
    teachers = {n: Teacher.of(model, whole[:n], device) for n in (COARSE, len(whole))}
    for block in model.blocks:
        block.compile()  # twice as fast
    log, order = Log(every=60), batches(POOL, BATCH, SEED, run.step)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        maps = COARSE if run.step < FIRST or run.step % 3 else len(whole)
        places = next(order)
        features = pool[places].float().to(device)
        batch = self_correcting(tokenizer, features, whole[:maps], generator)
        with autocast(device):
            rows = read(run.models, ids[places], lengths[places], generator)
            logits = forward(model, teachers[maps], rows, batch.inputs, ids.shape[1])
        parts = losses(logits, batch.targets, teachers[maps])
        run.update(parts["loss"], learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {name: part.detach() for name, part in parts.items()})
        if run.step % 100 == 0 or run.step == args.steps:
            run.save(checkpoint)
        if run.step % 400 == 0 or run.step == args.steps:
            sheet = args.folder / f"transformer-{run.step:05d}.png"
            sample_sheet(run.average["model"], tokenizer, run.text(), SAMPLED, sheet)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.layouts", description=__doc__)
    parser.add_argument("part", choices=("tokenizer", "transformer"))
    parser.add_argument("--data", type=Path, default=Path("layout-data"))
    parser.add_argument("--start", type=Path, default=Path("models/emoji-small"))
    parser.add_argument("--half", type=Path, default=HALF, help="tokenizer to start from")
    parser.add_argument("--folder", type=Path, default=Path("layout-training"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--export", type=Path, help="only write transformer and text encoder here")
    args = parser.parse_args()
    {"tokenizer": train_tokenizer, "transformer": train_transformer}[args.part](args)


if __name__ == "__main__":
    main()
