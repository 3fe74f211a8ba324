"""Compare sampling methods by diversity, quality and alignment; ``--bench emoji`` needs no data.

Every row of the comparison draws the same prompts from the same seeds. Images and features are
saved in --out: the same command continues where it was stopped, and writes report.md, .json and
.png at the end. Under torchrun, or with --shard, processes share the work; the last one to finish
writes the report. Folders, times and how to read the report: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from diversevar_core.checkpoints import included

from . import emoji, features, layouts, report, store
from .features import Encoder
from .generate import ROWS, Sampler
from .protocols import PUBLIC, Pictures, Protocol

OWN = {"emoji": emoji.protocol, "layouts": layouts.protocol}  # benches that need no data
REFERENCES = "references"


def parser() -> argparse.ArgumentParser:
    """All options."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.diversity", description=__doc__)
    top.add_argument("--bench", choices=(*OWN, *PUBLIC), required=True)
    top.add_argument("--data", type=Path, help="data set's folder (emoji, layouts: of training)")
    top.add_argument("--out", type=Path, help="output folder (default: diversity-BENCH)")
    top.add_argument("--rows", nargs="+", choices=tuple(ROWS), metavar="ROW",
                     help="what to compare (default: all): " + ", ".join(ROWS))  # fmt: skip
    top.add_argument("--prompts", type=int, help="use only this many prompts, the first ones")
    top.add_argument("--each", type=int, help="images per prompt (default: the bench's)")
    top.add_argument("--seed", type=int, default=0, help="of the first image")
    top.add_argument("--k", type=int, default=5, help="nearest neighbours (default 5)")
    models = top.add_argument_group("models (default: the included one)")
    models.add_argument("--model", type=Path, default=included.MODEL)
    models.add_argument("--vae", type=Path, default=included.VAE)
    models.add_argument("--text-encoder", type=Path, default=included.TEXT_ENCODER)
    models.add_argument("--device", help="cpu, cuda or mps (default: cuda if available)")
    models.add_argument("--batch", type=int, default=8, help="images drawn together")
    judges = top.add_argument_group("networks that measure; each adds its columns")
    judges.add_argument("--inception", type=Path, help="pt_inception-2015-12-05-6726825d.pth")
    judges.add_argument("--clip", type=Path, help="CLIP folder of the transformers library")
    judges.add_argument("--image-reward", type=Path, help="ImageReward.pt, tokenizer.json")
    judges.add_argument("--judge", type=Path, help="emoji and layouts: the judge of training")
    top.add_argument("--shard", metavar="I/N", help="this process's share (default: torchrun's)")
    return top


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """This process's index, from 0, and the number of processes."""
    if args.shard is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        place, count = (int(part) for part in args.shard.split("/"))
    except ValueError:
        place, count = 0, 0
    if not 0 <= place < count:
        raise ValueError(f"--shard must be like 0/4 to 3/4, not {args.shard}.")
    return place, count


def device_of(args: argparse.Namespace) -> str:
    """The chosen device; under torchrun, each process has its own GPU."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The bench that the options name."""
    if args.data is None and args.bench in PUBLIC:
        raise ValueError(f"{args.bench} reads its prompts from your copy; name it with --data.")
    protocol = (OWN | PUBLIC)[args.bench](args.data)
    if args.prompts is not None:
        protocol = protocol.first(args.prompts)
    return protocol if args.each is None else replace(protocol, each=args.each)


def rows_of(args: argparse.Namespace, protocol: Protocol) -> list[str]:
    """The rows that the options name; by default, all that fit the bench."""
    choosing = [name for name, row in ROWS.items() if row.starts and protocol.each == 1]
    asked = args.rows or [name for name in ROWS if name not in choosing]
    if refused := [name for name in asked if name in choosing]:
        raise ValueError(
            f"The row {refused[0]} chooses among the images of one prompt, and there is only one "
            "per prompt; leave it out, or set --each higher."
        )
    return asked


def encoders_of(args: argparse.Namespace, protocol: Protocol, device: str) -> list[Encoder]:
    """The networks whose files are given; small copies of the images where there are none."""
    found = []
    if args.inception is not None:
        found.append(features.inception(args.inception, device))
    if args.clip is not None:
        found.append(features.clip(args.clip, device))
    if args.image_reward is not None:
        found.append(features.image_reward(args.image_reward, device))
    if args.judge is not None:
        if protocol.judge is None:
            raise ValueError(
                "--judge judges the benches emoji and layouts, with --data of training."
            )
        found.append(protocol.judge.encoder(args.judge))
    if not any(encoder.name in report.SIMILARITY for encoder in found):
        found.append(features.pixels())
    return found


def say_pace(what: str, pictures: int, started: float) -> None:
    """Print the time per thousand pictures; started: ``time.perf_counter`` at the start."""
    if pictures:
        pace = 1000 * (time.perf_counter() - started) / pictures
        print(f"{what}: {pictures} pictures, {pace:.0f} s per thousand", flush=True)


def draw(
    sampler: Sampler,
    protocol: Protocol,
    rows: Mapping[str, Path],
    args: argparse.Namespace,
    mine: Sequence[range],
) -> None:
    """Draw this process's share of every row's pictures."""
    prompts = hashlib.sha256(repr(protocol.prompts).encode()).hexdigest()
    common = {"bench": protocol.name, "set of prompts": prompts[:16], "first seed": str(args.seed)}
    common |= {"pictures a prompt": str(protocol.each), "batch": str(args.batch)}
    for name, folder in rows.items():
        store.claim(folder, common | sampler.facts(ROWS[name]))
    for name, folder in rows.items():
        started, made = time.perf_counter(), 0
        for unit in mine:
            how = {"each": protocol.each, "first_seed": args.seed + unit[0], "batch": args.batch}
            made += store.make(folder, protocol, unit, partial(sampler.draw, ROWS[name], **how))
        say_pace(f"{name}, drawn and judged", made, started)


def encode(encoder: Encoder, sets: Mapping[Path, tuple[Pictures, Sequence[range]]]) -> None:
    """Write the features that are still missing; sets: folder -> pictures, this process's units."""
    network, started, read = None, time.perf_counter(), 0
    for folder, (pictures, mine) in sets.items():
        for unit in mine:
            if not store.features_file(folder, encoder, unit).exists():
                network = network or encoder.load()
                store.encode(folder, pictures, encoder, unit, network)
                read += len(unit)
    say_pace(f"{encoder.name}, read", read, started)


def run(args: argparse.Namespace) -> None:
    """Draw, encode, report."""
    for name in ("prompts", "each", "batch", "k"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, not {getattr(args, name)}.")
    place, count = shard_of(args)
    protocol, device = protocol_of(args), device_of(args)
    encoders = encoders_of(args, protocol, device)
    out = args.out or Path(f"diversity-{args.bench}")
    rows = {name: out / name.replace(" ", "-") for name in rows_of(args, protocol)}

    drawn = store.units(len(protocol.prompts) * protocol.each, protocol.each)
    sampler = Sampler(args.model, args.vae, args.text_encoder, device)
    draw(sampler, protocol, rows, args, drawn[place::count])
    del sampler  # gives its memory to the networks that measure

    sets = {folder: (protocol.samples(folder), drawn) for folder in rows.values()}
    if protocol.references is not None:
        real, identity = store.units(len(protocol.references.prompts)), protocol.references.identity
        sets[out / REFERENCES] = (protocol.references, real)
        facts = {"set of references": f"{len(protocol.references.prompts)} of {identity}"}
        store.claim(out / REFERENCES, facts)
    for encoder in encoders:
        shares = {folder: (p, units[place::count]) for folder, (p, units) in sets.items()}
        encode(encoder, shares)

    files = [store.record_file(folder, unit) for folder in rows.values() for unit in drawn]
    files += [
        store.features_file(folder, encoder, unit)
        for folder, (_, units) in sets.items()
        for encoder in encoders
        for unit in units
    ]
    if missing := [file for file in files if not file.exists()]:
        print(
            f"Share {place} of {count} is done; {len(missing)} of {len(files)} parts are still to "
            "come from the others, the last of which writes the report."
        )
        return

    def found(folder: Path) -> dict[str, torch.Tensor]:
        parts = (store.all_features(folder, encoder, sets[folder][1]) for encoder in encoders)
        return {name: tensor for part in parts for name, tensor in part.items()}

    real = found(out / REFERENCES) if protocol.references is not None else None
    measured = {
        name: found(folder) | store.own_scores(folder, drawn) for name, folder in rows.items()
    }
    prompts = {name: report.by_prompt(found, protocol) for name, found in measured.items()}
    content = {
        "bench": protocol.name,
        "prompts": len(protocol.prompts),
        "pictures a prompt": protocol.each,
        "references": len(protocol.references.prompts) if protocol.references else 0,
        "k": args.k,
        "features": real and report.distribution_space(real),
        "networks": {encoder.name: encoder.digest for encoder in encoders},
        "rows": {
            name: report.figures(tensors, prompts[name], real, args.k)
            for name, tensors in measured.items()
        },
        "differences": report.differences(prompts),
        "made with": {name: store.made_with(folder) for name, folder in rows.items()},
    }
    if real is not None and (scores := report.real_figures(real, protocol)):
        content["rows"][report.REAL] = scores
    report.write_report(out, content, rows, protocol)
    # not in the report, which is the same on every machine
    paces = {name: store.pace(folder, drawn) for name, folder in rows.items()}
    store.write(out / "timings.json", json.dumps(paces, indent=1).encode())
    for name, seconds in paces.items():
        shown = ", ".join(f"{what} in {value:.0f} s" for what, value in seconds.items())
        print(f"{name}, a thousand pictures: {shown}")
    print(out / "report.md")


def main() -> None:
    """Run; a ValueError ends it with its sentence."""
    try:
        run(parser().parse_args())
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
