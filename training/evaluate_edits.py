"""Judge the editing model: ``python -m training.evaluate_edits``.

It makes held out edits of every kind. Whether an edit was done is measured in the picture (hue,
chroma, size, distance to the mirrored source) or, for concept and design, by a classifier
(``judge.py``) that is trained on the real pictures in all states and also decides whether the rest
was kept. For comparison, the unchanged source and the encoded and decoded target are measured too.
PSNR is relative to the target, which is the only right result for colours. Writes edits.md and
edits.png.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.text.encoder import load_text_encoder

from .colours import colour_of, figure
from .data import PIXELS, Data, contact_sheet, load, to_model
from .edits import cells, sample_edits
from .edits_data import (
    SMALL,
    STATES,
    Edit,
    Maker,
    in_state,
    load_pool,
    trained,
)
from .evaluate import interval
from .judge import Verdict, load_judge
from .tokenizer import psnr, reconstruct, to_pixels

SEED = 5


def all_states(data: Data) -> Data:
    """The data in every state, to train the judge."""
    pictures = torch.cat([in_state(data.pictures, state) for state in STATES])
    times = len(STATES)
    return Data(pictures, data.concept.repeat(times), data.design.repeat(times), data.concepts)


def error(a: Tensor, b: Tensor) -> Tensor:
    """Mean square difference (N,) of pictures (N, H, W, 3), each blurred to sixteenths."""
    blurred = F.avg_pool2d(to_model(a), 8) - F.avg_pool2d(to_model(b), 8)
    return blurred.square().mean((1, 2, 3))


def side(pictures: Tensor) -> Tensor:
    """The figure's spread (N,) in pixels: root of its mean square distance from its centre."""
    weight = figure(pictures)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-3)
    at = torch.arange(PIXELS).float()
    variance = 0.0
    for profile in (weight.sum(1), weight.sum(2)):
        mean = (profile * at).sum(1)
        variance = variance + (profile * (at - mean[:, None]).square()).sum(1)
    return variance.sqrt()


def done(
    kind: str, edits: Sequence[Edit], source: Tensor, made: Tensor, verdict: Verdict, data: Data
) -> Tensor:
    """Whether each edit of this kind was done, (N,) bool.

    source, made: pictures (N, H, W, 3); verdict: the judge's on ``made``.
    """
    if kind == "colour":
        return colour_of(made) == torch.tensor([edit.target.state - 1 for edit in edits])
    if kind == "grey":
        return colour_of(made) == -1
    if kind in ("mirror", "upside down"):
        turned = source.flip(2 if kind == "mirror" else 1)
        return error(made, turned) < error(made, source)
    if kind in ("smaller", "larger"):
        factor = SMALL / PIXELS if kind == "smaller" else PIXELS / SMALL
        step = (side(made) / side(source)).log() / torch.tensor(factor).log()
        return (step > 0.5) & (step < 1.5)
    if kind == "style":
        return verdict.design.argmax(1) != data.design[[edit.source.picture for edit in edits]]
    return verdict.concept.argmax(1) == data.concept[[edit.target.picture for edit in edits]]


def kept(kind: str, edits: Sequence[Edit], verdict: Verdict, data: Data) -> Tensor:
    """Whether the rest was kept, (N,) bool: the concept or, where that is replaced, the design."""
    picture = [edit.target.picture for edit in edits]
    if kind == "replace":
        return verdict.design.argmax(1) == data.design[picture]
    return verdict.concept.argmax(1) == data.concept[picture]


def table(found: dict[str, dict[str, tuple[Tensor, ...]]]) -> str:
    """kind -> way -> done, kept, PSNR: as Markdown with 95 % bootstrap intervals."""
    lines = ["| edit | way | done | rest kept | both | PSNR in dB |", "|---|---|---|---|---|---|"]
    for kind, ways in found.items():
        for way, (finished, rest, quality) in ways.items():
            values = [interval(v.float()) for v in (finished, rest, finished & rest, quality)]
            texts = [f"{mean:.2f} ({low:.2f}-{high:.2f})" for mean, low, high in values]
            lines.append(f"| {kind} | {way} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def draw(
    models: tuple[nn.Module, nn.Module, object],
    edits: Sequence[Edit],
    source: Tensor,
    cfg: float,
    tau: float,
) -> Tensor:
    """One sample of every edit, (N, H, W, 3) uint8; source: encoder features."""
    model, tokenizer, text = models
    made = []
    for start in range(0, len(edits), 16):
        rows = text([edit.instruction for edit in edits[start : start + 16]])
        part = source[start : start + 16]
        made.append(sample_edits(model, tokenizer, rows, part, cfg, tau, SEED + start))
    return torch.cat(made)


def held_out(maker: Maker, number: int) -> dict[str, list[Edit]]:
    """``number`` different edits of every kind."""
    rng, found = random.Random(SEED), {}
    for kind in trained():
        edits = {}
        while len(edits) < number:
            edit = maker.draw(kind, rng, held_out=True)
            edits[edit.source, edit.target] = edit
        found[kind] = list(edits.values())
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_edits", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--folder", type=Path, default=Path("edit-training"))
    parser.add_argument("--tokenizer", type=Path, default=Path("models/emoji-small"))
    parser.add_argument("--models", type=Path, default=Path("models/emoji-edit"))
    parser.add_argument("--edits", type=int, default=80, help="of every kind")
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--tau", type=float, default=0.5)
    args = parser.parse_args()

    data = load(args.data)
    tokenizer = load_vae(args.tokenizer / "vae.safetensors")
    model = load_model(args.models / "transformer.safetensors")
    text = load_text_encoder(args.models / "text_encoder.safetensors")
    text.known = None  # instructions that it does not offer are measured too
    pool = load_pool(data, tokenizer, args.folder / "pool.pt")
    with torch.enable_grad():
        judge = load_judge(all_states(data), args.folder / "judge.ckpt")

    found, shown = {}, []
    for kind, edits in held_out(Maker(pool), args.edits).items():
        before, after = (pool.pictures([edit[place] for edit in edits]) for place in (2, 3))
        ways = {
            "source as it is": before,
            "target through the tokenizer": to_pixels(
                reconstruct(tokenizer, to_model(after), model.schedule())
            ),
            "sampled": draw(
                (model, tokenizer, text), edits, cells(pool, edits)[0], args.cfg, args.tau
            ),
        }
        found[kind] = {}
        for way, made in ways.items():
            verdict = judge.judge(made)
            found[kind][way] = (
                done(kind, edits, before, made, verdict, data),
                kept(kind, edits, verdict, data),
                psnr(made, after),
            )
        shown.append(torch.stack((before, after, ways["sampled"]), dim=1)[:16].flatten(0, 1))
        print(table({kind: found[kind]}), flush=True)
    (args.folder / "edits.md").write_text(table(found))
    contact_sheet(torch.cat(shown).numpy(), 24).save(args.folder / "edits.png")


if __name__ == "__main__":
    main()
