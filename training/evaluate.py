"""Judge the emoji model: ``python -m training.evaluate``.

A classifier trained on the real pictures (``judge.py``) gives every sample's concept and design.
For each row of ``rows``, the same prompts are sampled with the same seeds. Alignment and diversity,
with bootstrap intervals over prompts, go to a table and a plot; so does the rank correlation of the
model's own alignment with the classifier's. Measurements are saved in one file per row: the command
can be stopped at any time, run several times at once with different rows, and continued with more
prompts.
"""

from __future__ import annotations

import argparse
import json
import math
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

from diversevar_core.analysis.judge import Judged, self_alignment
from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.images import captioned_rows, to_pil
from diversevar_core.job import PLAIN, Chain, draw
from diversevar_core.methods.adaptive import AdaptiveScaling
from diversevar_core.methods.path_search import PathSearch
from diversevar_core.methods.repulsion import Repulsion
from diversevar_core.methods.ssr_sar import SITES, DiverseVAR
from diversevar_core.methods.starts import Starts
from diversevar_core.methods.text_noise import TextNoise
from diversevar_core.models.infinity import Infinity
from diversevar_core.presets import PRESETS
from diversevar_core.sampling.method import Method
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import TextEncoder, load_text_encoder
from diversevar_core.vae.bsq import BSQ

from .data import Data, load, to_model
from .data import contact_sheet as picture_sheet
from .judge import Judge, Verdict, held_out, read_judge
from .loop import autocast
from .metrics import RESAMPLES, designs_and_modes, frechet, interval
from .teacher import Teacher, forward, self_correcting
from .tokenizer import psnr, rebuilt, summed, to_pixels

SEED = 1000
SHOWN = 8  # prompts of the contact sheet: the first of each eighth of what is known, by name
REBUILT = 40  # random pictures beside their reconstructions
METRICS = ("top-1", "top-5", "designs", "modes", "distance", "alignment", "likelihood")
JUDGED = 4  # pictures per prompt for the model's own judgement


@dataclass(frozen=True)
class Row:
    """One way to sample; ``kind`` sets its colour in the plot."""

    name: str
    kind: str
    cfg: tuple[float, ...] | None = None  # None: the model's own
    tau: tuple[float, ...] | None = None
    chain: Chain = PLAIN
    guidance_start: int = 0
    guidance_end: int = 0


def rows() -> list[Row]:
    """Every method at the strengths that suit it."""

    def late(name: str, kind: str, *methods: Method, **options) -> Row:
        chain = Chain(methods, **options)
        return Row(f"guidance_start 4, {name}", kind, chain=chain, guidance_start=4)

    def published(name: str, kind: str, *methods: Method, **options) -> Row:
        return Row(f"published, {name}", kind, chain=Chain(methods, **options))

    found = [Row("as published: cfg 4, tau 0.5", "guidance")]
    for cfg, tau in ((1.0, 0.5), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)):
        found.append(Row(f"cfg {cfg:g}, tau {tau:g}", "guidance", (cfg,), (tau,)))
    for side in (2, 4, 6):
        found.append(Row(f"guidance_start {side}", "late guidance", guidance_start=side))
    for n in (64, 256):
        found.append(late(f"starts {n}, side 6", "starts", starts=Starts(n, 6)))
    for strength in (2.0, 4.0):
        name, method = f"repulsion {strength:g} to side 4", Repulsion(strength, 4)
        found.append(late(name, "repulsion", method))
    for strength in (0.4, 1.0):
        method = AdaptiveScaling(strength)
        found.append(published(f"adaptive scaling {strength:g}", "adaptive scaling", method))
    found.append(published("path search 4, 1 ahead", "path search", PathSearch(4, 1)))
    for strength in (0.5, 1.0):
        name, method = f"text noise {strength:g}", TextNoise(strength, end_time=1.25)
        found.append(published(name, "text noise", method))
    noise = TextNoise(1.0, end_time=1.25)
    found.append(published("text noise 1, travel to side 2", "scale travel", noise, travel=2))
    for site in SITES:
        for ssr in (0.25, 0.5, 1.0):
            method = DiverseVAR(ssr, ssr / 2, site=site)
            found.append(
                published(f"SSR {ssr:g}, SAR {ssr / 2:g}, {site}", f"SSR and SAR, {site}", method)
            )
    for ssr, sar in ((0.5, 0.0), (0.0, 0.5)):
        method = DiverseVAR(ssr, sar, site="model")
        found.append(published(f"SSR {ssr:g}, SAR {sar:g}, model", "SSR and SAR, model", method))
    name, method = "SSR 2, SAR 1, block, side 2", DiverseVAR(2.0, 1.0, (2,), "block")
    return [*found, published(name, "SSR and SAR, block", method)]


@dataclass(frozen=True)
class Bench:
    """The three models, the judge, the prompts (indices of concepts), and the number of seeds."""

    model: Infinity
    tokenizer: BSQ
    text: TextEncoder
    judge: Judge
    data: Data
    chosen: tuple[int, ...]
    seeds: int

    def draw(self, row: Row, concept: int) -> tuple[Tensor, Judged]:
        """Sample a concept: pictures (seeds, H, W, 3) uint8, and the judgement of a few of them.

        Seeds begin at ``SEED * (1 + concept)`` in every row.
        """
        text = Text(self.text([self.data.concepts[concept].prompt]))
        guided = {"guidance_start": row.guidance_start, "guidance_end": row.guidance_end}
        own = self.model.defaults()
        cfg, tau = row.cfg or own.cfg, row.tau or own.tau
        settings = Settings(cfg, "flat", tau, 0, 0.97, **guided)
        models, schedule = (self.model, self.tokenizer), self.model.schedule()
        how = (text.repeat(self.seeds), schedule, settings, SEED * (1 + concept), row.chain)
        steps = list(draw(*models, *how).steps)[-len(schedule) :]
        pictures = to_pixels(self.tokenizer.decode(steps[-1].f_hat))
        bits = [step.tokens[:JUDGED] for step in steps]
        return pictures, self_alignment(*models, bits, text.repeat(JUDGED), schedule)

    def resample(self, concept: int) -> Tensor:
        """Pictures whose maps are each drawn given the real picture's coarser maps."""
        schedule = self.model.schedule()
        teacher = Teacher.of(self.model, schedule, torch.device("cpu"))
        generator = torch.Generator().manual_seed(SEED * (1 + concept))
        features = self.tokenizer.encoder(to_model(self.real(concept)))
        batch = self_correcting(self.tokenizer, features, schedule, generator, flipped=0.0)
        text = self.text([self.data.concepts[concept].prompt]) * self.seeds
        logits = forward(self.model, teacher, text, batch.inputs, max(map(len, text)))
        drawn = torch.bernoulli(logits.softmax(dim=-1)[..., 1], generator=generator).long()
        bits = drawn.split([scale.tokens for scale in schedule], dim=1)
        return to_pixels(self.tokenizer.decode(summed(self.tokenizer, bits, schedule)))

    def real(self, concept: int) -> Tensor:
        """A concept's real pictures, repeated: (seeds, H, W, 3) uint8."""
        places = (self.data.concept == concept).nonzero().squeeze(1)
        return self.data.pictures[places[torch.arange(self.seeds) % len(places)]]

    def measure(self, make: Callable[[int], tuple[Tensor, Judged]], path: Path) -> None:
        """Make and judge every concept's pictures; save the metrics of each prompt at ``path``."""
        known = json.loads(path.read_text()) if path.exists() else {}
        for concept in self.chosen:
            prompt = self.data.concepts[concept].prompt
            if prompt in known:
                continue
            with torch.no_grad(), autocast():
                pictures, judged = make(concept)
            seen = metrics(self.judge.judge(pictures), concept)
            known[prompt] = (*seen, *(part.mean().item() for part in judged))
            draft = path.with_suffix(".part")
            draft.write_text(json.dumps(known, indent=1))
            draft.replace(path)


def metrics(verdict: Verdict, concept: int) -> tuple[float, ...]:
    """``METRICS`` of one prompt's pictures, without the model's own judgement.

    designs: number of designs in the pictures that show the concept; modes: exponential of the
    entropy of all pictures' designs; distance: mean Euclidean distance of two pictures' unit
    features.
    """
    hit = verdict.concept.topk(5).indices == concept
    designs, modes = designs_and_modes(hit[:, 0], verdict.design.argmax(dim=1))
    distance = F.pdist(F.normalize(verdict.features)).mean().item()
    top1, top5 = hit[:, 0].float().mean().item(), hit.any(dim=1).float().mean().item()
    return top1, top5, designs, modes, distance


def summary(kind: str, path: Path, prompts: Sequence[str]) -> dict:
    """One row of the table, over the measured prompts: metric -> [mean, low, high]."""
    known = json.loads(path.read_text())
    measured = torch.tensor([known[prompt] for prompt in prompts if prompt in known])
    columns = zip(METRICS, measured.T, strict=True)
    return {"kind": kind, "prompts": len(measured)} | {name: interval(c) for name, c in columns}


def tokenizer_figures(bench: Bench) -> dict[str, float]:
    """PSNR in dB, Frechet distance in the judge's features, and the judge's accuracy."""
    pictures = bench.data.pictures
    made = rebuilt(bench.tokenizer, pictures, bench.model.schedule())
    real, seen = bench.judge.judge(pictures), bench.judge.judge(made)
    named = (seen.concept.argmax(dim=1) == bench.data.concept).float().mean().item()
    return {
        "PSNR": psnr(made, pictures).mean().item(),
        "rFID": frechet(real.features, seen.features),
        "concept top-1": named,
        "design": (seen.design.argmax(dim=1) == bench.data.design).float().mean().item(),
    }


def contact_sheet(bench: Bench, known: Sequence[str], path: Path) -> None:
    """Save a grid: eight pictures per prompt, as published, with SSR and SAR, most different."""
    ways = {
        "as published": "as published",
        "SSR and SAR": "SSR + SAR (DiverseVAR)",
        "most different": "most different",
    }
    rows = {}
    for title, name in ways.items():
        preset = PRESETS[name]
        rows[title] = Row("", "", chain=preset.chain(), guidance_start=preset.guidance_start)
    prompts = [concept.prompt for concept in bench.data.concepts]
    shown = [sorted(known)[len(known) * i // SHOWN] for i in range(SHOWN)]
    bench = replace(bench, seeds=8)
    columns = []
    for title, row in rows.items():
        lines = [
            (f"{prompt}: {title}", rearrange(pictures / 255, "b h w c -> b c h w"))
            for prompt in shown
            for pictures in [bench.draw(row, prompts.index(prompt))[0]]
        ]
        columns.append(F.pad(captioned_rows(lines), (0, 16), value=1.0))
    to_pil(torch.cat(columns, dim=2)).save(path)


def reconstructions(bench: Bench, path: Path) -> None:
    """``REBUILT`` random pictures, and below each what the tokenizer makes of it."""
    order = torch.randperm(len(bench.data.pictures), generator=torch.Generator().manual_seed(SEED))
    real = bench.data.pictures[order[:REBUILT]]
    made = rebuilt(bench.tokenizer, real, bench.model.schedule())
    rows = [torch.cat(pair) for pair in zip(real.split(10), made.split(10), strict=True)]
    picture_sheet(torch.cat(rows).numpy(), 10).save(path)


def rank_correlation(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Spearman's, of the model's own alignment and concept top-1, with an interval over rows."""
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
    lines += [
        "",
        "| | prompts | " + " | ".join(METRICS) + " |",
        "|---|---|" + "---|" * len(METRICS),
    ]
    for name, row in report["rows"].items():
        cells = (shown(metric, *row[metric]) for metric in METRICS)
        lines.append(f"| {name} | {row['prompts']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(metric: str, mean: float, low: float, high: float) -> str:
    """A cell of the table."""
    if math.isnan(mean):
        return ""
    digits = {"designs": 2, "modes": 2, "alignment": 0, "likelihood": 0}.get(metric, 3)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def plot(report: dict, path: Path) -> None:
    """Plot diversity against alignment: a point per row, with bars for bootstrap intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5))
    colours = plt.get_cmap("tab20").colors
    kinds = list(dict.fromkeys(row["kind"] for row in report["rows"].values()))
    for axis, metric in zip(axes, ("designs", "distance"), strict=True):
        for colour, kind in zip(colours, kinds, strict=False):
            points = [row for row in report["rows"].values() if row["kind"] == kind]
            x, y = ([row[m] for row in points] for m in ("top-1", metric))
            bars = [[[p[0] - p[1] for p in v], [p[2] - p[0] for p in v]] for v in (x, y)]
            axis.errorbar(
                [p[0] for p in x],
                [p[0] for p in y],
                yerr=bars[1],
                xerr=bars[0],
                fmt="o",
                color=colour,
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
    parser.add_argument("--data", type=Path, default=Path("emoji-data-wide"))
    parser.add_argument("--judge", type=Path, default=Path("tests/judge.safetensors"))
    parser.add_argument("--folder", type=Path, default=Path("evaluation"), help="for the results")
    parser.add_argument("--models", type=Path, default=Path("models/emoji"))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of rows")
    args = parser.parse_args()

    data = load(args.data)
    judge, _ = read_judge(args.judge)
    text = load_text_encoder(args.models / "text_encoder.safetensors")
    listed = included.prompts(args.models / "text_encoder.safetensors")
    order = torch.randperm(len(data.concepts), generator=torch.Generator().manual_seed(SEED))
    known = [i for i in order.tolist() if data.concepts[i].prompt in listed]
    bench = Bench(
        load_model(args.models / "transformer.safetensors"),
        load_vae(args.models / "vae.safetensors"),
        text,
        judge,
        data,
        tuple(known[: args.prompts]),
        args.seeds,
    )
    kept = args.folder / f"evaluation-{args.seeds}"
    kept.mkdir(parents=True, exist_ok=True)
    unjudged = Judged(*2 * [torch.tensor(torch.nan)])
    makers = {
        "the real pictures": ("data", lambda concept: (bench.real(concept), unjudged)),
        "every map drawn after the real ones before it": (
            "data",
            lambda concept: (bench.resample(concept), unjudged),
        ),
    }
    makers |= {row.name: (row.kind, partial(bench.draw, row)) for row in rows()}
    files = {name: kept / f"{name}.json" for name in makers}
    for name, (_, make) in makers.items():
        if any(part in name for part in args.only):
            started = time.process_time()
            bench.measure(make, files[name])
            print(f"{name}  ({time.process_time() - started:.0f} CPU s)", flush=True)
    prompts = [data.concepts[concept].prompt for concept in bench.chosen]
    report = {"judge": held_out(judge, data), "tokenizer": tokenizer_figures(bench)}
    report["rows"] = {
        name: summary(kind, files[name], prompts)
        for name, (kind, _) in makers.items()
        if files[name].exists()
    }
    saved = args.folder / f"evaluation-{args.prompts}x{args.seeds}"
    saved.with_suffix(".md").write_text(table(report))
    plot(report, saved.with_suffix(".png"))
    if args.only == [""]:
        with torch.no_grad():
            named = [data.concepts[i].prompt for i in known]
            contact_sheet(bench, named, args.folder / "contact.png")
            reconstructions(bench, args.folder / "reconstructions.png")


if __name__ == "__main__":
    main()
