"""Judge the emoji model: ``python -m training.evaluate``.

A classifier trained on the real pictures (``judge.py``) says what every sample shows and in which
design. For each row of ``rows`` the same prompts are sampled from the same noise; alignment and
diversity, with bootstrap intervals over prompts, go to evaluation.json, .md and .png, and how well
the model's judgement of itself ranks the rows. Rows that are in the json already are not sampled
again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from benchmarks.diversity.emoji import designs_and_modes
from benchmarks.diversity.metrics import RESAMPLES, frechet, interval
from diversevar_core.checkpoints import load_model, load_tokenizer
from diversevar_core.conditions import Text
from diversevar_core.families.infinity import Infinity
from diversevar_core.judge import Judged, self_alignment
from diversevar_core.methods import Method
from diversevar_core.methods.adaptive import AdaptiveScaling
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.text_noise import TextNoise
from diversevar_core.pictures import captioned_rows, to_pil
from diversevar_core.presets import PRESETS
from diversevar_core.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.spectral import DiverseVAR, calibrated
from diversevar_core.starts import Starts, choose_starts
from diversevar_core.text import TextEncoder, load_text_encoder
from diversevar_core.tokenizers.bsq import BSQ

from .data import Data, load, to_model
from .judge import Judge, Verdict, held_out, load_judge
from .teacher import Teacher, forward, self_correcting
from .tokenizer import psnr, reconstruct, summed, to_pixels

SEED = 1000
SHOWN = ("octopus", "cat face", "penguin", "pizza", "owl", "red apple", "fox", "sunflower")
METRICS = ("top-1", "top-5", "designs", "modes", "distance", "alignment", "likelihood")
JUDGED = 4  # pictures a prompt that the model judges itself


@dataclass(frozen=True)
class Row:
    """One way to sample: plain settings and a method; ``kind`` is its colour in the plot."""

    name: str
    kind: str
    cfg: tuple[float, ...] = (4.0,)
    tau: tuple[float, ...] = (0.5,)
    methods: tuple[Method, ...] = ()
    guide_from: int = 0


# site, sides, and pairs of SSR and SAR: the paper's, on the whole transformer or on every block, at
# the paper's maps or at those that come first here
GRID = (
    ("model", (4, 6), ((0.5, 0), (1, 0), (2, 0), (0, 0.5), (0, 1), (0, 2), (0.5, 0.25), (1, 1))),
    ("block", (4, 6), ((0.5, 0), (1, 0), (0, 0.25), (0, 0.5), (0.5, 0.25), (1, 1))),
    ("block", (2, 4), ((0.5, 0), (0, 0.5), (0.5, 0.25), (1, 0.5), (1, 1), (2, 2))),
    ("block", (2,), ((1, 0), (0, 1), (0.5, 0.25), (1, 0.5), (2, 1), (4, 2), (2, 2), (4, 4))),
    ("block", (1, 2), ((0.5, 0), (1, 0), (0, 1), (1, 0.5))),
)

METHODS: dict[str, tuple[str, tuple[Method, ...]]] = {
    **{
        f"starts {n}, side {side}": ("starts", (Starts(n, side),))
        for n in (16, 64, 256)
        for side in (2, 6)
    },
    **{
        f"repulsion {strength:g} to side {side}": ("repulsion", (Repulsion(strength, side),))
        for strength in (1.0, 2.0, 4.0, 8.0)
        for side in (1, 2, 4, 6)
    },
    **{
        f"starts 64, side {side}, repulsion {strength:g} to side 4": (
            "starts and repulsion",
            (Starts(64, side), Repulsion(strength, 4)),
        )
        for side in (2, 6)
        for strength in (2.0, 4.0, 8.0)
    },
    **{
        f"adaptive scaling {strength:g}": ("adaptive scaling", (AdaptiveScaling(strength),))
        for strength in (0.25, 0.5, 0.75, 1.0)
    },
    **{
        f"text noise {strength:g} to {end:g}": ("text noise", (TextNoise(strength, end_time=end),))
        for strength in (0.05, 0.1, 0.25, 0.5)
        for end in (0.9, 1.25)
    },
    **{
        f"path search {n}, {ahead} ahead": ("path search", (PathSearch(n, ahead),))
        for n, ahead in ((4, 0), (4, 1), (8, 1))
    },
    **{
        f"SSR {strength:g}, SAR {strength / 2:g}, features, sides 4 6": (
            "DiverseVAR features",
            (DiverseVAR(strength, strength / 2, site="features"),),
        )
        for strength in (0.25, 0.5, 1.0, 2.0)
    },
}


def method_rows() -> list[Row]:
    """The other methods, on the published settings and on late guidance."""
    found = [Row("guide_from 4", "late guidance", guide_from=4)]
    for late in (0, 4):
        for name, (kind, methods) in METHODS.items():
            found.append(Row(f"guide_from {late}, {name}", kind, methods=methods, guide_from=late))
    return found


def rows() -> list[Row]:
    """Official settings, the plain knobs around them, SSR and SAR on a grid, other methods."""
    found = [Row(f"cfg {cfg}, tau 0.5", "guidance", (cfg,)) for cfg in (4, 3, 2, 1.5, 1)]
    for cfg, tau in ((4, 1), (3, 1), (2, 1), (4, 1.5), (3, 1.5)):
        found.append(Row(f"cfg {cfg}, tau {tau}", "temperature", (cfg,), (tau,)))
    for maps in (1, 2, 3):
        for tau in (0.5, 1.0):
            name = f"{maps} maps cfg 1, tau {tau:g}, then cfg 4, tau 0.5"
            found.append(Row(name, "interval", (1.0,) * maps + (4.0,), (tau,) * maps + (0.5,)))
    for site, sides, pairs in GRID:
        for ssr, sar in pairs:
            name = f"SSR {ssr:g}, SAR {sar:g}, {site}, sides {' '.join(map(str, sides))}"
            method = DiverseVAR(ssr, sar, sides, site)
            found.append(Row(name, f"DiverseVAR {site}", methods=(method,)))
    late = (1.0, 1.0)
    name = "2 maps cfg 1, tau 1, then cfg 4, tau 0.5, and diversity 1 (the nodes' defaults)"
    found.append(Row(name, "interval", (*late, 4.0), (*late, 0.5), (calibrated(1.0),)))
    return found + method_rows()


@dataclass(frozen=True)
class Bench:
    """What is judged: the three models, the judge, and which prompts with how many seeds."""

    model: Infinity
    tokenizer: BSQ
    text: TextEncoder
    judge: Judge
    data: Data
    chosen: tuple[int, ...]
    seeds: int

    def draw(self, row: Row, concept: int, first: int) -> tuple[Tensor, Judged]:
        """Sample a concept's pictures -> (seeds, H, W, 3) uint8, and what the model says of a few.

        first: the seed of the first, or of the first candidate.
        """
        text = Text(self.text([self.data.concepts[concept].prompt])).repeat(self.seeds)
        settings = Settings(row.cfg, "flat", row.tau, 0, 0.97, guide_from=row.guide_from)
        models, schedule = (self.model, self.tokenizer), self.model.schedule()
        how = (*models, text, schedule, settings)
        starts = next((one for one in row.methods if isinstance(one, Starts)), Starts(1))
        seeds = choose_starts(starts, self.seeds, *how, first, row.methods)
        steps = list(sample(*how, seeds, methods=row.methods))
        maps = [step.tokens[:JUDGED] for step in steps]
        judged = self_alignment(*models, maps, text.repeat(len(maps[0])), schedule)
        return to_pixels(self.tokenizer.decode(steps[-1].f_hat)).cpu(), judged

    def resample(self, concept: int, first: int) -> Tensor:
        """Pictures whose bits are drawn one map at a time, each from what the real maps say."""
        schedule = self.model.schedule()
        teacher = Teacher.of(self.model, schedule, torch.device("cpu"))
        generator = torch.Generator().manual_seed(first)
        features = self.tokenizer.encoder(to_model(self.real(concept)))
        batch = self_correcting(self.tokenizer, features, schedule, generator, flipped=0.0)
        text = self.text([self.data.concepts[concept].prompt]) * self.seeds
        logits = forward(self.model, teacher, text, batch.inputs, max(map(len, text)))
        drawn = torch.bernoulli(logits.softmax(dim=-1)[..., 1], generator=generator).long()
        bits = drawn.split([scale.tokens for scale in schedule], dim=1)
        return to_pixels(self.tokenizer.decode(summed(self.tokenizer, bits, schedule)))

    def real(self, concept: int) -> Tensor:
        """A concept's real pictures, over and over: (seeds, H, W, 3) uint8."""
        places = (self.data.concept == concept).nonzero().squeeze(1)
        return self.data.pictures[places[torch.arange(self.seeds) % len(places)]]

    def measure(self, make: Callable[[int, int], tuple[Tensor, Judged]]) -> Tensor:
        """Make and judge every concept's pictures: (concepts, metrics)."""
        found = []
        for i, concept in enumerate(self.chosen):
            pictures, judged = make(concept, SEED + i * self.seeds)
            seen = metrics(self.judge.judge(pictures), concept)
            found.append((*seen, *(part.mean().item() for part in judged)))
        return torch.tensor(found)


def metrics(verdict: Verdict, concept: int) -> tuple[float, ...]:
    """``METRICS`` of one prompt's pictures, without the model's own judgement.

    designs: how many designs are among the pictures that show the concept; modes: exponential of
    the entropy of the designs of all pictures; distance: mean Euclidean distance of two pictures'
    features, each of unit length.
    """
    hit = verdict.concept.topk(5).indices == concept
    designs, modes = designs_and_modes(hit[:, 0], verdict.design.argmax(dim=1))
    distance = F.pdist(F.normalize(verdict.features)).mean().item()
    top1, top5 = hit[:, 0].float().mean().item(), hit.any(dim=1).float().mean().item()
    return top1, top5, designs, modes, distance


def summary(kind: str, measured: Tensor) -> dict:
    """One row of the table: metric -> [mean, low, high]."""
    columns = zip(METRICS, measured.T, strict=True)
    return {"kind": kind, "prompts": len(measured)} | {name: interval(c) for name, c in columns}


def tokenizer_figures(bench: Bench) -> dict[str, float]:
    """PSNR in dB, Frechet distance in the judge's features, and what the judge still recognises."""
    pictures = bench.data.pictures
    parts = pictures.split(64)
    schedule = bench.model.schedule()
    made = torch.cat(
        [to_pixels(reconstruct(bench.tokenizer, to_model(p), schedule)) for p in parts]
    )
    real, seen = bench.judge.judge(pictures), bench.judge.judge(made)
    named = (seen.concept.argmax(dim=1) == bench.data.concept).float().mean().item()
    return {
        "PSNR": psnr(made, pictures).mean().item(),
        "rFID": frechet(real.features, seen.features),
        "concept top-1": named,
        "design": (seen.design.argmax(dim=1) == bench.data.design).float().mean().item(),
    }


def contact_sheet(bench: Bench, path: Path) -> None:
    """Prompts by rows, eight pictures of each as published, with SSR and SAR, most different."""
    ways = {
        "as published": "as published",
        "SSR and SAR": "SSR + SAR as in the paper",
        "most different": "most different",
    }
    ways = {
        title: Row("", "", methods=PRESETS[name].methods(), guide_from=PRESETS[name].guide_from)
        for title, name in ways.items()
    }
    known = [concept.prompt for concept in bench.data.concepts]
    bench = replace(bench, seeds=8)
    columns = []
    for title, row in ways.items():
        lines = [
            (f"{prompt}: {title}", rearrange(pictures / 255, "b h w c -> b c h w"))
            for prompt in SHOWN
            for pictures in [bench.draw(row, known.index(prompt), first=0)[0]]
        ]
        columns.append(F.pad(captioned_rows(lines), (0, 16), value=1.0))
    to_pil(torch.cat(columns, dim=2)).save(path)


def rank_correlation(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Spearman's, of the model's own alignment and concept top-1, and its interval over rows."""
    pairs = torch.tensor([[row["alignment"][0], row["top-1"][0]] for row in rows])
    pairs = pairs[pairs.isfinite().all(dim=1)]
    generator = torch.Generator().manual_seed(SEED)
    picks = torch.randint(len(pairs), (RESAMPLES, len(pairs)), generator=generator)
    found = torch.tensor([spearman(pairs[pick]) for pick in picks]).sort().values
    low, high = found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]
    return spearman(pairs), low.item(), high.item()


def spearman(pairs: Tensor) -> float:
    """Correlation of the ranks of two columns (N, 2); ties share their mean rank."""
    below = (pairs[:, None] > pairs[None]).double().sum(dim=1)
    tied = (pairs[:, None] == pairs[None]).double().sum(dim=1)
    return torch.corrcoef((below + tied / 2).T)[0, 1].item()


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [f"{title}: " + ", ".join(f"{k} {v:.3g}" for k, v in report[title].items())
             for title in ("judge", "tokenizer")]  # fmt: skip
    found = "{:.3f} ({:.3f}-{:.3f})".format(*rank_correlation(list(report["rows"].values())))
    lines.append(f"rank correlation of the model's own alignment with concept top-1: {found}")
    lines += ["", "| row | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for name, row in report["rows"].items():
        cells = (f"{row[m][0]:.3f} ({row[m][1]:.3f}-{row[m][2]:.3f})" for m in METRICS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict, path: Path) -> None:
    """Diversity against alignment, a point a row, bars for the bootstrap intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5))
    kinds = list(dict.fromkeys(row["kind"] for row in report["rows"].values()))
    for axis, metric in zip(axes, ("designs", "distance"), strict=True):
        for kind in kinds:
            points = [row for row in report["rows"].values() if row["kind"] == kind]
            x, y = ([row[m] for row in points] for m in ("top-1", metric))
            bars = [[[p[0] - p[1] for p in v], [p[2] - p[0] for p in v]] for v in (x, y)]
            axis.errorbar(
                [p[0] for p in x],
                [p[0] for p in y],
                yerr=bars[1],
                xerr=bars[0],
                fmt="o",
                label=kind,
                alpha=0.7,
                elinewidth=0.5,
                markersize=4,
            )
        axis.set(xlabel="alignment: concept top-1", ylabel=f"diversity: {metric}")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--folder", type=Path, default=Path("emoji-training"))
    parser.add_argument("--models", type=Path, default=Path("models/emoji"))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of rows")
    args = parser.parse_args()

    data = load(args.data)
    judge = load_judge(data, args.folder / "judge.ckpt")
    order = torch.randperm(len(data.concepts), generator=torch.Generator().manual_seed(SEED))
    bench = Bench(
        load_model(args.models / "transformer.safetensors"),
        load_tokenizer(args.models / "tokenizer.safetensors"),
        load_text_encoder(args.models / "text_encoder.safetensors"),
        judge,
        data,
        tuple(order[: args.prompts].sort().values.tolist()),
        args.seeds,
    )
    saved = args.folder / f"evaluation-{args.prompts}x{args.seeds}.json"
    report = json.loads(saved.read_text()) if saved.exists() else {"rows": {}}
    report |= {"judge": held_out(judge, data), "tokenizer": tokenizer_figures(bench)}

    unjudged = Judged(*2 * [torch.tensor(torch.nan)])
    makers = {
        "data": ("data", lambda concept, first: (bench.real(concept), unjudged)),
        "teacher-forced": (
            "data",
            lambda concept, first: (bench.resample(concept, first), unjudged),
        ),
    }
    makers |= {row.name: (row.kind, partial(bench.draw, row)) for row in rows()}
    for name, (kind, make) in makers.items():
        if name in report["rows"] or not any(part in name for part in args.only):
            continue
        started = time.time()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            report["rows"][name] = summary(kind, bench.measure(make))
        shown = ", ".join(f"{m} {report['rows'][name][m][0]:.3f}" for m in METRICS)
        print(f"{name}: {shown}  ({time.time() - started:.0f} s)", flush=True)
        saved.write_text(json.dumps(report, indent=1))
    saved.with_suffix(".md").write_text(table(report))
    plot(report, saved.with_suffix(".png"))
    with torch.no_grad():
        contact_sheet(bench, args.folder / "contact.png")


if __name__ == "__main__":
    main()
