"""The judge: a small classifier of concept and design, trained on the real pictures.

``python -m training.judge`` trains the one of all concepts that the included model may list.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .colours import with_colours
from .data import SETS, Data, load, to_model
from .loop import Log, autocast, batches, learning_rate, resume, save

FEATURES = 192
BATCH, STEPS, PEAK, WARMUP, SEED = 64, 900, 3e-3, 100, 7
HELD_OUT = 0.1  # share of the pictures whose mirrored copy is held out


class Verdict(NamedTuple):
    """features (N, FEATURES); concept (N, concepts) and design (N, designs) logits."""

    features: Tensor
    concept: Tensor
    design: Tensor


class Judge(nn.Module):
    """Five stages of strided convolutions, the mean over positions, and two linear layers."""

    def __init__(self, concepts: int):
        super().__init__()
        widths = (3, 16, 32, 64, 128, FEATURES)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                for before, width in zip(widths, widths[1:], strict=False)
            )
        )
        self.concept = nn.Linear(FEATURES, concepts)
        self.design = nn.Linear(FEATURES, len(SETS))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The output of every stage for pictures (B, 3, H, W) in -1..1."""
        found = []
        for stage in self.stages:
            pictures = stage(pictures)
            found.append(pictures)
        return found

    def forward(self, pictures: Tensor) -> Verdict:
        features = self.stages(pictures).mean(dim=(2, 3))
        return Verdict(features, self.concept(features), self.design(features))

    @torch.no_grad()
    def judge(self, pictures: Tensor) -> Verdict:
        """Verdicts on uint8 pictures (N, H, W, 3)."""
        parts = [self(to_model(part)) for part in pictures.split(256)]
        return Verdict(*(torch.cat(answers).float() for answers in zip(*parts, strict=True)))


def jitter(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, recolour and (every second batch) blur pictures (B, 3, H, W) in -1..1."""
    n = len(pictures)
    scale = 1 + 0.2 * (torch.rand(n, generator=generator) - 0.5)
    shift = 0.2 * (torch.rand(n, 2, generator=generator) - 0.5)
    transform = torch.zeros(n, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = scale
    transform[:, :, 2] = shift
    grid = F.affine_grid(transform, pictures.shape, align_corners=False)
    moved = F.grid_sample(pictures - 1, grid, align_corners=False)  # white, 1, fills the border
    gain = 1 + 0.3 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    moved = moved * gain + 1
    full = pictures.shape[-1]
    side = int(full * (0.3 + 1.4 * torch.rand((), generator=generator)))
    if side < full:
        small = F.interpolate(moved, size=(side, side), mode="area")
        moved = F.interpolate(small, size=(full, full), mode="bilinear")
    return moved + 0.05 * torch.randn(moved.shape, generator=generator)


def split(data: Data) -> tuple[Tensor, Tensor]:
    """Indices of pictures whose mirrored copy is used for training, and of those held out."""
    may = torch.tensor([concept.mirrored for concept in data.concepts])[data.concept]
    held = torch.rand(len(may), generator=torch.Generator().manual_seed(SEED)) < HELD_OUT
    return (may & ~held).nonzero().squeeze(1), (may & held).nonzero().squeeze(1)


def accuracy(judge: Judge, pictures: Tensor, concept: Tensor, design: Tensor) -> dict[str, float]:
    """Shares of right answers for uint8 pictures (N, H, W, 3)."""
    verdict = judge.judge(pictures)
    best = verdict.concept.topk(5).indices == concept[:, None]
    return {
        "concept top-1": best[:, 0].float().mean().item(),
        "concept top-5": best.any(dim=1).float().mean().item(),
        "design": (verdict.design.argmax(dim=1) == design).float().mean().item(),
    }


def load_judge(data: Data, path: Path, steps: int = STEPS) -> Judge:
    """The judge at ``path``; trained first if it does not exist."""
    torch.manual_seed(SEED)
    judge = Judge(len(data.concepts)).to(memory_format=torch.channels_last)
    if state := resume(path):
        judge.load_state_dict(state)
        return judge.eval()
    mirrored, _ = split(data)
    pictures = torch.cat((data.pictures, data.pictures[mirrored].flip(2)))
    concept = torch.cat((data.concept, data.concept[mirrored]))
    design = torch.cat((data.design, data.design[mirrored]))
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    log, order = Log(every=100), batches(len(pictures), BATCH, SEED, 0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK, WARMUP)
        places = next(order)
        generator = torch.Generator().manual_seed(SEED + step)
        seen = jitter(to_model(pictures[places]), generator)
        with autocast():
            verdict = judge(seen.contiguous(memory_format=torch.channels_last))
        named, drawn = (
            F.cross_entropy(logits.float(), right[places], label_smoothing=0.1)
            for logits, right in ((verdict.concept, concept), (verdict.design, design))
        )
        optimizer.zero_grad(set_to_none=True)
        (named + drawn).backward()
        optimizer.step()
        log(step + 1, {"concept": named.detach(), "design": drawn.detach()})
    save(path, judge.state_dict())
    return judge.eval()


def write_judge(judge: Judge, data: Data, path: Path) -> None:
    """Save the judge in float16 with the concepts' prompts, for ``read_judge``."""
    tensors = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    prompts = [concept.prompt for concept in data.concepts]
    save_file(tensors, path, metadata={"prompts": json.dumps(prompts)})


def read_judge(path: Path) -> tuple[Judge, list[str]]:
    """A judge that ``write_judge`` saved, and the prompts that its concepts are."""
    with safe_open(path, "pt") as file:
        prompts = json.loads(file.metadata()["prompts"])
    judge = Judge(len(prompts))
    judge.load_state_dict(load_file(path))
    return judge.eval(), prompts


def held_out(judge: Judge, data: Data) -> dict[str, float]:
    """Accuracy on mirrored copies that were not trained on."""
    _, held = split(data)
    return accuracy(judge, data.pictures[held].flip(2), data.concept[held], data.design[held])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data-wide"))
    parser.add_argument("--folder", type=Path, default=Path("judge-training"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--export", type=Path, default=Path("tests/judge.safetensors"))
    args = parser.parse_args()

    data = with_colours(load(args.data), named=False)
    judge = load_judge(data, args.folder / "judge.ckpt", args.steps)
    write_judge(judge, data, args.export)
    print("on mirrored copies that it never saw:", held_out(judge, data))


if __name__ == "__main__":
    main()
