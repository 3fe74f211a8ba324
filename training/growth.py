"""Teach the included transformer more of the world: ``python -m training.growth``.

It starts from the included transformer and text encoder, and goes on with the full set's concepts
(``data.py --full``) of the categories in ``FIRST``; a share of every batch shows what it knows
already. A classifier of the full set (``judge.py``) names samples of old and of new prompts.
Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diversevar_core.checkpoints.loading import load_tokenizer
from diversevar_core.sampling.conditions import Text
from diversevar_core.sampling.sampler import sample
from diversevar_core.sampling.settings import Settings
from diversevar_core.vae.bsq import BSQ

from .data import Data, contact_sheet, load, to_model, with_mirrored
from .judge import Judge, load_judge
from .loop import Log, batches, learning_rate
from .sharp import JUDGE_STEPS
from .teacher import Teacher, forward, losses, self_correcting
from .text import tokenize
from .tokenizer import to_pixels
from .transformer import WarmRun, export, read

FIRST = (
    "Activities", "Animals & Nature", "Food & Drink", "Objects", "Smileys & Emotion",
    "Travel & Places",
)  # fmt: skip
BATCH, PEAK, WARMUP, SEED = 32, 1e-3, 50, 4
OLD = 0.4  # share of a batch that shows what the included model knows
NAMED, SAMPLES = 32, 2  # prompts of either kind that are sampled, and pictures of each


class Grown:
    """Pictures' features (N, d, h, w) float16, their prompts, and which show old prompts."""

    def __init__(self, full: Data, old: Sequence[str], tokenizer: BSQ, path: Path):
        both = with_mirrored(full)
        wanted = torch.tensor([c.prompt in old or c.category in FIRST for c in full.concepts])
        places = wanted[both.concept].nonzero().squeeze(1)
        self.concept, self.prompts = both.concept[places], [c.prompt for c in full.concepts]
        known = torch.tensor([prompt in old for prompt in self.prompts])
        self.old = known[self.concept].nonzero().squeeze(1)
        self.new = (~known[self.concept]).nonzero().squeeze(1)
        self.features = encoded(tokenizer, both.pictures[places], path)

    def concepts(self, places: Tensor) -> list[int]:
        """``NAMED`` concepts among those of these pictures, evenly spread."""
        found = self.concept[places].unique()
        return found[:: max(len(found) // NAMED, 1)][:NAMED].tolist()


@torch.no_grad()
def encoded(tokenizer: BSQ, pictures: Tensor, path: Path) -> Tensor:
    """Features (N, d, h, w) float16 of uint8 pictures, kept at ``path``."""
    if not path.exists():
        with torch.autocast("cpu", torch.bfloat16):
            parts = [tokenizer.encoder(to_model(part)).half() for part in pictures.split(64)]
        torch.save(torch.cat(parts), path)
    return torch.load(path, weights_only=True)


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def named(run: WarmRun, tokenizer: BSQ, judge: Judge, grown: Grown, sheet: Path) -> dict:
    """Share of samples, as published, that the judge names rightly, of old and of new prompts."""
    settings, text, rows, found = Settings((4.0,), "flat", (0.5,), 0, 0.97), run.text(), [], {}
    model = run.average["model"]
    for kind in ("old", "new"):
        concepts = torch.tensor(grown.concepts(getattr(grown, kind))).repeat_interleave(SAMPLES)
        prompts = Text(text([grown.prompts[concept] for concept in concepts]))
        seeds = range(SEED, SEED + len(concepts))
        *_, last = sample(model, tokenizer, prompts, model.schedule(), settings, seeds)
        rows.append(to_pixels(tokenizer.decode(last.f_hat)))
        found[kind] = (judge.judge(rows[-1]).concept.argmax(1) == concepts).float().mean().item()
    contact_sheet(torch.cat(rows).numpy(), 16).save(sheet)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.growth", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"), help="what it knows")
    parser.add_argument("--full", type=Path, default=Path("emoji-data-full"))
    parser.add_argument("--models", type=Path, default=Path("models/emoji"), help="the start")
    parser.add_argument("--judge", type=Path, default=Path("emoji-training/judge-full.ckpt"))
    parser.add_argument("--folder", type=Path, default=Path("growth-training"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--export", type=Path, help="only write the checkpoint's weights here")
    args = parser.parse_args()

    full, old = load(args.full), {concept.prompt for concept in load(args.data).concepts}
    run = WarmRun(args.models, [concept.prompt for concept in full.concepts])
    checkpoint = args.folder / "growth.ckpt"
    run.resume(checkpoint)
    if args.export:
        export(run.average["model"], run.text(), args.export)
        return

    args.folder.mkdir(parents=True, exist_ok=True)
    judge = load_judge(full, args.judge, JUDGE_STEPS)
    tokenizer = load_tokenizer(args.models / "tokenizer.safetensors")
    grown = Grown(full, old, tokenizer, args.folder / "features.pt")
    ids, lengths = tokenize(run.words, grown.prompts)
    model = run.models["model"]
    schedule = model.schedule()
    teacher = Teacher.of(model, schedule, torch.device("cpu"))
    for block in model.blocks:
        block.compile()  # twice as fast
    sizes = round(BATCH * OLD), BATCH - round(BATCH * OLD)
    orders = [
        (places, batches(len(places), n, SEED, run.step))
        for places, n in zip((grown.old, grown.new), sizes, strict=True)
    ]
    log = Log(every=25)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        places = torch.cat([pool[next(order)] for pool, order in orders])
        concept, features = grown.concept[places], grown.features[places].float()
        batch = self_correcting(tokenizer, features, schedule, generator)
        with torch.autocast("cpu", torch.bfloat16):
            rows = read(run.models, ids[concept], lengths[concept], generator)
            logits = forward(model, teacher, rows, batch.inputs, ids.shape[1])
        parts = losses(logits, batch.targets, teacher)
        run.update(parts["loss"], learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {name: part.detach() for name, part in parts.items()})
        if run.step % 100 == 0 or run.step == args.steps:
            run.save(checkpoint)
        if run.step % 500 == 0 or run.step == args.steps:
            sheet = args.folder / f"growth-{run.step:05d}.png"
            print(f"named: {named(run, tokenizer, judge, grown, sheet)}", flush=True)


if __name__ == "__main__":
    main()
