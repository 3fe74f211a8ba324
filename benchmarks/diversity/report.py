"""Features -> figures -> a table in JSON and Markdown, a plot, and a sheet of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from diversevar_core.images import captioned_rows, to_pil
from training import metrics

from .protocols import Protocol
from .store import write

# in order of preference: features to compare distributions, and a prompt's images, with
DISTRIBUTION = ("inception", "judge", "clip")
SIMILARITY = ("clip", "judge", "inception", "pixels")
# in order of preference: the figure for the plot's alignment axis
ALIGNMENT = ("CLIP score", "ImageReward", "top-1", "self-alignment")

REAL = "real pictures"
WHOLE = {"coco2014-30k": 30_000, "coco2017-5k": 5_000}  # prompts of the published rows
SHOWN, THUMBNAIL = 8, 128  # prompts in the sheet of pictures, and pixels of each

# arXiv 2511.17074 as its authors' repository gives it: bench -> row -> metric -> value
PUBLISHED = {
    "coco2014-30k": {
        "Infinity-2B": {"recall": 0.316, "coverage": 0.651, "FID": 28.48, "CLIP score": 0.313},
        "Infinity-2B, DiverseVAR": {
            "recall": 0.385, "coverage": 0.690, "FID": 22.96, "CLIP score": 0.313,
        },
        "Infinity-8B": {"recall": 0.451, "coverage": 0.740, "FID": 18.79, "CLIP score": 0.319},
        "Infinity-8B, DiverseVAR": {
            "recall": 0.497, "coverage": 0.748, "FID": 14.26, "CLIP score": 0.315,
        },
    },
    "coco2017-5k": {
        "Infinity-2B": {"recall": 0.408, "coverage": 0.832, "FID": 39.01, "CLIP score": 0.313},
        "Infinity-2B, DiverseVAR": {
            "recall": 0.480, "coverage": 0.860, "FID": 33.39, "CLIP score": 0.313,
        },
        "Infinity-8B": {"recall": 0.563, "coverage": 0.892, "FID": 29.47, "CLIP score": 0.319},
        "Infinity-8B, DiverseVAR": {
            "recall": 0.585, "coverage": 0.892, "FID": 25.01, "CLIP score": 0.316,
        },
    },
}  # fmt: skip

Figures = dict[str, list[float]]  # metric -> [value], or [mean, low, high]


def figures(
    found: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor],
    real: Mapping[str, Tensor] | None,
    k: int,
) -> Figures:
    """All figures of a row that can be computed from its features.

    found, real: name -> features (N, C) or scores (N,) of the samples, in the order of prompts, and
    of the references; prompts: ``by_prompt`` of the samples.
    """
    row, space = {}, distribution_space(found)
    if real is not None and space is not None:
        near = metrics.neighbours(real[space], found[space], k)
        row |= {name: interval(values) for name, values in near.items()}
        row["FID" if space == "inception" else f"Frechet distance ({space})"] = [
            metrics.frechet(real[space], found[space])
        ]
    row |= {name: interval(values) for name, values in prompts.items()}
    similar = similarity_space(found)
    row[f"vendi of all ({similar})"] = [metrics.overall_vendi(found[similar])]
    return row


def by_prompt(found: Mapping[str, Tensor], protocol: Protocol) -> dict[str, Tensor]:
    """The figures of each prompt's pictures, (prompts,)."""
    each, similar = protocol.each, similarity_space(found)
    values = {
        name: score.double().unflatten(0, (-1, each)).mean(dim=1)
        for name, score in found.items()
        if score.ndim == 1
    }
    if "judge" in found:
        values |= protocol.judge.within(found, each)
    if each > 1:
        within = metrics.within_prompts(found[similar], each)
        values |= {f"{name} in a prompt ({similar})": v for name, v in within.items()}
    return values


def differences(rows: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Figures]:
    """How the other rows' ``by_prompt`` differ from the first one's."""
    (_, base), *others = rows.items()
    return {
        name: {figure: interval(values - base[figure]) for figure, values in row.items()}
        for name, row in others
    }


def similarity_space(found: Mapping[str, Tensor]) -> str:
    """The features in which a prompt's pictures are compared."""
    return next(name for name in SIMILARITY if name in found)


def distribution_space(found: Mapping[str, Tensor]) -> str | None:
    """The features in which distributions are compared."""
    return next((name for name in DISTRIBUTION if name in found), None)


def real_figures(real: Mapping[str, Tensor], protocol: Protocol) -> Figures:
    """The references' scores, and the judge's figures of their prompts, as an upper bound."""
    row = {name: interval(v.double()) for name, v in real.items() if v.ndim == 1}
    if "judge" in real:
        within = protocol.judge.within(real, len(real["judge"]) // len(protocol.prompts))
        row |= {name: interval(values) for name, values in within.items()}
    return row


def interval(values: Tensor) -> list[float]:
    """[mean, low, high]."""
    return list(metrics.interval(values))


def write_report(
    folder: Path, report: Mapping, sheets: Mapping[str, Path], protocol: Protocol
) -> None:
    """report.json, .md and .png, and pictures.png of the rows' folders ``sheets``."""
    write(folder / "report.json", json.dumps(report, indent=1).encode())
    write(folder / "report.md", markdown(report).encode())
    plot(report, folder / "report.png")
    contact_sheet(sheets, protocol).save(folder / "pictures.png")


def markdown(report: Mapping) -> str:
    """The report's table, with published rows below the measured ones, and its notes."""
    rows, published = report["rows"], PUBLISHED.get(report["bench"], {})
    columns = columns_of(rows)
    lines = [
        f"# {report['bench']}",
        "",
        f"{report['prompts']} prompts, {report['pictures a prompt']} pictures each, "
        f"{report['references']} references. In brackets: 95 % bootstrap intervals over prompts; "
        "for recall, precision, density and coverage over pictures "
        f"(k = {report['k']}, {report['features'] or 'no'} features).",
        "",
        *table(rows, columns),
    ]
    for name, row in published.items():
        values = {metric: [value] for metric, value in row.items()}
        lines.append(line(f"*published: {name}*", values, columns))
    if published:
        lines += ["", "Published: arXiv 2511.17074; alpha, beta, scales and k are not public."]
    if published and report["prompts"] != WHOLE[report["bench"]]:
        lines += ["", f"Theirs are of {WHOLE[report['bench']]} prompts; do not compare."]
    if differ := report["differences"]:
        lines += ["", f"Less {next(iter(rows))}, prompt by prompt:", ""]
        lines += table(differ, columns_of(differ))
    return "\n".join(lines) + "\n"


def columns_of(rows: Mapping[str, Figures]) -> list[str]:
    """Every figure that a row has."""
    return list(dict.fromkeys(name for row in rows.values() for name in row))


def table(rows: Mapping[str, Figures], columns: Sequence[str]) -> list[str]:
    """The lines of a table."""
    head = ["| row | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    return head + [line(name, row, columns) for name, row in rows.items()]


def line(name: str, row: Figures, columns: Sequence[str]) -> str:
    """A row of a table, with a dash for a missing value."""
    shown = []
    for column in columns:
        values = row.get(column, [])
        digits = 0 if values and abs(values[0]) >= 100 else 3
        mean, *ends = [f"{value:.{digits}f}" for value in values] or ["-"]
        span = " to " if "-" in "".join(ends) else "-"  # of negative values
        shown.append(f"{mean} ({span.join(ends)})" if ends else mean)
    return f"| {name} | " + " | ".join(shown) + " |"


def plot(report: Mapping, path: Path) -> None:
    """Plot diversity against alignment, one point per row; published rows are hollow."""
    rows = {name: row for name, row in report["rows"].items() if name != REAL}
    published = {
        name: {metric: [value] for metric, value in row.items()}
        for name, row in PUBLISHED.get(report["bench"], {}).items()
    }
    measured = list(dict.fromkeys(name for row in rows.values() for name in row))
    diverse = [
        name
        for name in measured
        if name in ("recall", "coverage", "designs") or name.startswith(("distance", "vendi"))
    ][:3]
    x_name = next(name for name in ALIGNMENT if name in measured)
    figure, axes = plt.subplots(
        1, len(diverse), figsize=(5 * len(diverse), 4.5), squeeze=False, layout="constrained"
    )
    for axis, y_name in zip(axes[0], diverse, strict=True):
        for name, row in [*rows.items(), *published.items()]:
            if x_name not in row or y_name not in row:
                continue
            x, y = row[x_name], row[y_name]
            axis.errorbar(
                x[0],
                y[0],
                xerr=around(x),
                yerr=around(y),
                fmt="o",
                fillstyle="none" if name in published else "full",
                label=f"published: {name}" if name in published else name,
                elinewidth=0.7,
            )
        axis.set(xlabel=x_name, ylabel=y_name)
        axis.locator_params(nbins=5)
    named = axes[0][0].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def around(value: Sequence[float]) -> list[list[float]] | None:
    """Lengths of the error bars of [mean, low, high]."""
    if len(value) == 1:
        return None
    mean, low, high = value
    return [[mean - low], [high - mean]]


def contact_sheet(folders: Mapping[str, Path], protocol: Protocol) -> Image.Image:
    """The first prompts' pictures, one line per row, with the same seed in each column."""
    each = min(protocol.each, SHOWN)
    starts = [i * protocol.each for i in range(min(SHOWN, len(protocol.prompts)))]
    if each == 1:
        parts = [(f"{len(starts)} prompts", starts)]
    else:
        texts = (prompt.text for prompt in protocol.prompts)
        parts = [(text, range(n, n + each)) for text, n in zip(texts, starts, strict=False)]
    lines = []
    for text, numbers in parts:
        for name, folder in folders.items():
            samples = protocol.samples(folder)
            shown = [samples.read(n).convert("RGB").resize((THUMBNAIL, THUMBNAIL)) for n in numbers]
            pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in shown]))
            lines.append((f"{name}: {text}", rearrange(pixels / 255, "b h w c -> b c h w")))
    return to_pil(captioned_rows(lines))
