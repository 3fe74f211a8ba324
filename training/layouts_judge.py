"""The judge of layouts: finds every concept in a picture. ``python -m training.layouts_judge``.

It is trained on random layouts; its accuracy is printed at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import to_model
from .layouts_data import CONCEPTS, GROUNDS, PIXELS, Layout, load, painted
from .loop import Log, autocast, learning_rate, save

STRIDE = 8
GRID = PIXELS // STRIDE
BATCH, STEPS, PEAK, WARMUP, SEED = 32, 600, 3e-3, 50, 7
SURE = 0.4  # least probability of an object that counts as found
CLOSE = 30.0  # largest distance in RGB of a background pixel from its colour
FIRST = 1 << 24  # the first seed of its layouts, which no other training uses


class Found(NamedTuple):
    """features (N, 1536); there (N, concepts) in 0..1; place (N, concepts, 2): x, y in 0..1."""

    features: Tensor
    there: Tensor
    place: Tensor


class LayoutJudge(nn.Module):
    """Convolutions to a map of logits with a channel for each concept, high at its centre."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96)
        stages = []
        for before, width in zip(widths, widths[1:], strict=False):
            stages += [self.layer(before, width, 4, 2), self.layer(width, width, 3, 1)]
        wide = [self.layer(96, 96, 3, 1, dilation) for dilation in (2, 3, 2)]
        self.stages = nn.Sequential(*stages, *wide)
        self.concepts = nn.Conv2d(96, len(CONCEPTS), 1)
        nn.init.constant_(self.concepts.bias, -4.0)

    @staticmethod
    def layer(before: int, width: int, kernel: int, stride: int, dilation: int = 1) -> nn.Module:
        """Convolution, norm, activation."""
        around = dilation * (kernel - 1) // 2
        conv = nn.Conv2d(before, width, kernel, stride, around, dilation, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, 128, 128) in -1..1 -> logits (N, concepts, 16, 16)."""
        return self.concepts(self.stages(pictures))

    @torch.no_grad()
    def find(self, pictures: Tensor) -> Found:
        """Find the objects in uint8 pictures (N, H, W, 3)."""
        maps = torch.cat([self.stages(to_model(part)) for part in pictures.split(64)])
        best = self.concepts(maps).flatten(2).max(dim=2)
        at = torch.stack((best.indices % GRID, best.indices // GRID), dim=2)
        features = F.adaptive_avg_pool2d(maps, 4).flatten(1)
        return Found(features, best.values.sigmoid(), (at + 0.5) / GRID)


def centres(layouts: list[Layout]) -> Tensor:
    """The maps to learn (N, concepts, 16, 16): 1 at an object's centre, falling around it."""
    at = (torch.arange(GRID) + 0.5) * STRIDE
    maps = torch.zeros(len(layouts), len(CONCEPTS), GRID, GRID)
    for own, layout in zip(maps, layouts, strict=True):
        for concept, _, _, left, top, side in layout.objects:
            centre = left + side / 2, top + side / 2
            x, y = ((at - c).square() for c in centre)
            own[concept] = torch.exp(-(y[:, None] + x) / (2 * (0.12 * side) ** 2))
            own[concept, int(centre[1] / STRIDE), int(centre[0] / STRIDE)] = 1
    return maps


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) recoloured, often blurred, with noise, similar to decoded ones."""
    gain = 1 + 0.2 * (torch.rand(len(pictures), 3, 1, 1, generator=generator) - 0.5)
    side = int(torch.randint(44, 168, (), generator=generator))
    made = pictures * gain
    if side < PIXELS:
        small = F.interpolate(made, size=(side, side), mode="bilinear", antialias=True)
        made = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")
    return made + 0.08 * torch.randn(made.shape, generator=generator)


def ground_of(pictures: Tensor) -> Tensor:
    """The background (N,) of uint8 pictures (N, H, W, 3): the colour that most pixels have."""
    colours = torch.tensor(list(GROUNDS.values())).float()
    close = [(pictures.float() - c).norm(dim=-1).lt(CLOSE).sum(dim=(1, 2)) for c in colours]
    return torch.stack(close, dim=1).argmax(dim=1)


def train(objects: np.ndarray) -> LayoutJudge:
    """Train a new judge."""
    torch.manual_seed(SEED)
    judge = LayoutJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.02)
    log = Log(every=50)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, PEAK, WARMUP)
        seeds = range(FIRST + step * BATCH, FIRST + (step + 1) * BATCH)
        layouts, pictures = painted(seeds, objects)
        generator = torch.Generator().manual_seed(SEED + step)
        with autocast():
            logits = judge(augmented(to_model(pictures), generator)).float()
        wanted = centres(layouts)
        # focal loss, as CenterNet's (arXiv 1904.07850), as most places are empty
        p, peak = logits.sigmoid().clamp(1e-4, 1 - 1e-4), wanted == 1
        near = torch.where(peak, (1 - p) ** 2 * p.log(), (1 - wanted) ** 4 * p**2 * (1 - p).log())
        loss = -near.sum() / peak.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        log(step + 1, {"loss": loss.detach()})
    return judge.eval()


def accuracy(judge: LayoutJudge, objects: np.ndarray) -> dict[str, float]:
    """On 256 layouts: recall, precision, and mean distance of found objects from their places."""
    layouts, pictures = painted(range(FIRST - 256, FIRST), objects)
    found = judge.find(pictures)
    truth = [(i, placed) for i, layout in enumerate(layouts) for placed in layout.objects]
    rows, concepts = torch.tensor([(i, placed.concept) for i, placed in truth]).T
    middle = torch.tensor([(p.left + p.side / 2, p.top + p.side / 2) for _, p in truth]) / PIXELS
    hit = found.there[rows, concepts] > SURE
    off = (found.place[rows, concepts] - middle).norm(dim=1)[hit].mean().item()
    recall, all_found = hit.float().mean().item(), (found.there > SURE).sum().item()
    return {"found": recall, "right": hit.sum().item() / all_found, "off": off}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.layouts_judge", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("layout-data"))
    parser.add_argument("--folder", type=Path, default=Path("layout-training"))
    args = parser.parse_args()
    objects = load(args.data)
    judge = train(objects)
    save(args.folder / "judge.ckpt", judge.state_dict())
    print(accuracy(judge, objects))


if __name__ == "__main__":
    main()
