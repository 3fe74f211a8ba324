"""Teach the transformer a larger set of concepts: ``python -m training.growth``.

It starts from what ``transformer.py`` exported and goes on with ``data.py --concepts grown``; a
share of every batch shows what it knows already. A classifier of the larger set (``judge.py``)
names samples of old and of new prompts. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.conditions import Text
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import square
from diversevar_core.vae.bsq import BSQ

from .data import Data, contact_sheet, load, to_model
from .judge import Judge, load_judge
from .loop import Log, autocast, batches, kept, learning_rate
from .teacher import Teacher, forward, losses, self_correcting
from .text import tokenize
from .tokenizer import SIDES, psnr, rebuilt, to_pixels
from .transformer import WarmRun, export, read

BATCH, PEAK, WARMUP, SEED = 32, 1e-3, 50, 4
OLD = 0.5  # share of a batch that shows what it knows already
CLEAR = 18.5  # least mean PSNR in dB of a new concept's pictures through the tokenizer
JUDGE_STEPS = 2500
NAMED, SAMPLES = 32, 2  # while it trains: prompts of either kind, and pictures of each


class Pictures:
    """Features (N, d, h, w) float16 of pictures and their prompts; places of old and of new ones.

    New concepts that the tokenizer cannot show (``CLEAR``) are left out, and so are mirrored
    copies: the tokens of a map are drawn at once, and where both ways are likely, one image shows
    half of each.
    """

    def __init__(self, data: Data, old: Sequence[str], tokenizer: BSQ, folder: Path):
        self.concept, self.prompts = data.concept, [c.prompt for c in data.concepts]
        known = torch.tensor([prompt in old for prompt in self.prompts])
        new = ~known & (clearness(tokenizer, data, folder / "clearness.pt") >= CLEAR)
        self.old, self.new = (kind[self.concept].nonzero().squeeze(1) for kind in (known, new))
        self.features = encoded(tokenizer, data.pictures, folder / "features.pt")

    def spread(self, places: Tensor) -> Tensor:
        """``NAMED`` concepts among those of these pictures, evenly spread."""
        found = self.concept[places].unique()
        return found[:: max(len(found) // NAMED, 1)][:NAMED]


@torch.no_grad()
def clearness(tokenizer: BSQ, data: Data, path: Path) -> Tensor:
    """Mean PSNR in dB of every concept's pictures through the tokenizer, ``kept`` at ``path``."""

    def make() -> Tensor:
        with autocast():
            made = rebuilt(tokenizer, data.pictures, square(SIDES))
        each = psnr(made, data.pictures)
        means = [each[data.concept == concept].mean() for concept in range(len(data.concepts))]
        return torch.stack(means)

    return kept(path, (data.pictures, data.concept, *tokenizer.parameters()), make)


@torch.no_grad()
def encoded(tokenizer: BSQ, pictures: Tensor, path: Path) -> Tensor:
    """Features (N, d, h, w) float16 of uint8 pictures, ``kept`` at ``path``."""

    def make() -> Tensor:
        device, parts = next(tokenizer.parameters()).device, pictures.split(64)
        with autocast(device):
            parts = [tokenizer.encoder(to_model(part.to(device))).half().cpu() for part in parts]
        return torch.cat(parts)

    return kept(path, (pictures, *tokenizer.encoder.parameters()), make)


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def sampled(run: WarmRun, tokenizer: BSQ, prompts: Sequence[str]) -> Tensor:
    """Pictures (N, H, W, 3) uint8 of prompts as published, drawn 64 at a time."""
    model, text, made = run.average["model"], run.text(), []
    for first in range(0, len(prompts), 64):
        condition = Text(text(prompts[first : first + 64]))
        how = model.schedule(), model.defaults(), range(SEED, SEED + len(condition))
        with autocast(model.pos_start.device):
            *_, last = sample(model, tokenizer, condition, *how)
            made.append(to_pixels(tokenizer.decode(last.f_hat)).cpu())
    return torch.cat(made)


def named(
    run: WarmRun, tokenizer: BSQ, judge: Judge, prompts: Sequence[str], concepts: Tensor, each: int
) -> tuple[Tensor, Tensor]:
    """Sample concepts as published: the share (N,) of ``each`` pictures that the judge names
    rightly, and the pictures (N * each, H, W, 3) uint8.
    """
    asked = concepts.repeat_interleave(each)
    pixels = sampled(run, tokenizer, [prompts[concept] for concept in asked])
    right = judge.judge(pixels).concept.argmax(1) == asked
    return right.view(-1, each).float().mean(1), pixels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.growth", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"), help="what it knows")
    parser.add_argument("--grown", type=Path, default=Path("emoji-data-grown"))
    parser.add_argument(
        "--models", type=Path, default=Path("emoji-training/model"), help="the start"
    )
    parser.add_argument("--folder", type=Path, default=Path("growth-training"))
    parser.add_argument("--steps", type=int, default=6400)
    parser.add_argument("--export", type=Path, help="only write the weights here")
    args = parser.parse_args()

    data, old = load(args.grown), {concept.prompt for concept in load(args.data).concepts}
    run = WarmRun(args.models, [concept.prompt for concept in data.concepts])
    checkpoint = args.folder / "growth.ckpt"
    run.resume(checkpoint)
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_vae(args.models / "vae.safetensors")
    pictures = Pictures(data, old, tokenizer, args.folder)
    if args.export:
        trained = pictures.concept[torch.cat((pictures.old, pictures.new))].unique()
        prompts = sorted(pictures.prompts[concept] for concept in trained)
        export(run.average["model"], run.text(), args.export, prompts)
        return

    ids, lengths = tokenize(run.words, pictures.prompts)
    model = run.models["model"]
    schedule = model.schedule()
    teacher = Teacher.of(model, schedule, torch.device("cpu"))
    for block in model.blocks:
        block.compile()  # twice as fast
    sizes = round(BATCH * OLD), BATCH - round(BATCH * OLD)
    orders = [
        (places, batches(len(places), n, SEED, run.step))
        for places, n in zip((pictures.old, pictures.new), sizes, strict=True)
    ]
    log = Log(every=25)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        places = torch.cat([pool[next(order)] for pool, order in orders])
        concept, features = pictures.concept[places], pictures.features[places].float()
        batch = self_correcting(tokenizer, features, schedule, generator)
        # plain matrix products: their gradient is faster on a CPU than flash attention's
        with autocast(), sdpa_kernel(SDPBackend.MATH):
            rows = read(run.models, ids[concept], lengths[concept], generator)
            logits = forward(model, teacher, rows, batch.inputs, ids.shape[1])
        parts = losses(logits, batch.targets, teacher)
        run.update(parts["loss"], learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {name: part.detach() for name, part in parts.items()})
        if run.step % 100 == 0 or run.step == args.steps:
            run.save(checkpoint)
        if run.step % 500 == 0 or run.step == args.steps:
            sheet = args.folder / f"growth-{run.step:05d}.png"
            judge = load_judge(data, args.folder / "judge.ckpt", JUDGE_STEPS)
            rows = []
            for kind in ("old", "new"):
                concepts = pictures.spread(getattr(pictures, kind))
                shares, pixels = named(run, tokenizer, judge, pictures.prompts, concepts, SAMPLES)
                print(f"{kind}: {shares.mean():.3f} named rightly", flush=True)
                rows.append(pixels)
            contact_sheet(torch.cat(rows).numpy(), 16).save(sheet)


if __name__ == "__main__":
    main()
