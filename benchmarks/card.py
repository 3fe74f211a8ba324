"""What holds on this device, and how fast it is: one command, and a report to hand back.

``python -m benchmarks card`` runs the parts below, each in a process of its own with a limit, the
most important first, and writes ``card-<device>.md``, ``.json`` and ``.png``. A check that raises
or crashes is a line of the report, and the rest of its part goes on in a new process.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from diversevar_core.cli.load import device_of

from . import meter

ROOT = Path(__file__).parents[1]
GB = 1e9
LONGEST = 600  # characters of a line's value
# module whose CHECKS are a part -> its title, and its share of the time beside the parts after it
PARTS = {
    "machine": ("Machine", 1),
    "exact": ("Exact", 2),
    "fast": ("Fast", 4),
    "memory": ("Memory", 1),
    "host": ("The host", 4),
}
# of docs/speed.md's table -> the line of a report, and which of its numbers
COLUMNS = {
    "2B, s an image": ("infinity-2b, batch 1", "seconds"),
    "images a minute in a batch of 4": ("infinity-2b, batch 4", "a minute"),
    "peak GB": ("infinity-2b, batch 1, peak", "GB"),
    "the estimate's error, %": ("infinity-2b, batch 1, peak", "%"),
    "SSR + SAR, %": ("infinity-2b, SSR + SAR", "%"),
    "8B, s an image": ("infinity-8b, batch 1", "seconds"),
}
# an absolute path, to its last name
PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:)?[\\/]+(?:[^\s\\/:'\"]+[\\/]+)*(?=[^\s\\/])")


@dataclass(frozen=True)
class Card:
    """What the checks are told."""

    device: str
    until: float  # by time.time(), when the part must be over
    scratch: Path  # a folder for all parts
    host: Path | None = None  # ComfyUI
    against: Path | None = None  # a checkout of VAR, Infinity or VAREdit
    shape: str | None = None  # of ``shapes.SHAPES``, in place of the device's

    @property
    def small(self) -> bool:
        """Whether the device is a CPU, for which the released sizes are too large."""
        return self.device == "cpu"

    @property
    def pictures(self) -> Path:
        """Where a check draws the report's pictures."""
        return self.scratch / "pictures.png"

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()


class Line(NamedTuple):
    """A line of the report."""

    what: str
    result: str  # pass, fail, figure, skipped
    value: str = ""
    numbers: dict[str, float] = {}


def work(part: str, done: int, card: Card, pipe: Connection) -> None:
    """Run a module's CHECKS but the first: sends all names, then each name, its lines, None."""
    torch.set_grad_enabled(False)
    meter.use(card.device)
    checks = list(importlib.import_module(part).CHECKS.items())[done:]
    pipe.send([name for name, _ in checks])
    for name, check in checks:
        pipe.send(name)
        try:
            for line in check(card):
                pipe.send(line)
        except Exception as error:
            pipe.send(Line(name, "fail", f"{type(error).__name__}: {error}"))
            traceback.print_exc()
            os._exit(1)  # a card may be of no more use to this process, not even to end it
        pipe.send(None)


def run_part(part: str, card: Card) -> Iterator[Line]:
    """The lines of a module's CHECKS, as they come; they are over at ``card.until``."""
    spawn, done, rest = multiprocessing.get_context("spawn"), 0, [part]
    while rest and card.left > 0:
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=work, args=(part, done, card, theirs))
        process.start()
        theirs.close()
        began, name, failed = time.time(), part, False
        while ours.poll(max(card.left, 0)):
            try:
                sent = ours.recv()
            except EOFError:
                break
            if isinstance(sent, list):
                rest = sent
            elif isinstance(sent, Line):
                failed = sent.result == "fail"
                yield sent
            else:
                began, name, failed = time.time(), sent, False
                done += sent is not None
                rest = [other for other in rest if other != sent]
        process.join(max(card.left, 0.1))
        if process.is_alive():
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
        if card.left <= 0 and name:
            yield Line(name, "skipped", f"stopped after {time.time() - began:.0f} s: no time left")
        elif process.exitcode and not failed:
            yield Line(name, "fail", f"the process ended with code {process.exitcode}")
        if name == part:  # it ended before its first check
            return
    for name in rest:
        yield Line(name, "skipped", "no time left")


def run(args: Namespace) -> int:
    """Run all parts, or one; write the report after each. Returns how many checks failed."""
    if args.table is not None:
        print(*table([json.loads(path.read_text()) for path in args.table]), sep="\n")
        return 0
    device, began, lines = device_of(args.device), time.time(), {}
    parts = [part for part in PARTS if part in ("machine", args.only or part)]
    parts = [part for part in parts if part != "host" or args.host]
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, ignore_cleanup_errors=True) as scratch:
        card = Card(device, 0.0, Path(scratch).resolve(), args.host, args.against, args.shape)
        folders = [card.scratch, ROOT, *filter(None, (args.host, args.against)), Path.home()]
        for i, part in enumerate(parts):
            share = PARTS[part][1] / sum(PARTS[later][1] for later in parts[i:])
            until = time.time() + share * (began + 60 * args.minutes - time.time())
            for line in run_part(f"{__package__}.{part}", replace(card, until=until)):
                what, value = (clean(text, folders) for text in (line.what, line.value))
                lines.setdefault(part, []).append(line._replace(what=what, value=value))
                print(f"{part}: {what}: {line.result} {value}", flush=True)
            path, count = report(lines, device, (time.time() - began) / 60, card.pictures, args.out)
    print(f"\nPlease send {path.name}, with its .json and .png.", file=sys.stderr)
    return count["fail"]


def clean(text: str, folders: Sequence[Path]) -> str:
    """Text for a cell of a table, without the user's folders: of a path, its last name."""
    text = " ".join(text.split()).replace("|", "/")
    for folder in map(str, folders):
        for written in (folder, repr(folder)[1:-1]):
            text = text.replace(written, "")
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return PATH.sub("", text)


def report(
    lines: dict[str, list[Line]], device: str, minutes: float, pictures: Path, folder: Path
) -> tuple[Path, Counter[str]]:
    """Write the report; returns the Markdown's path and how many lines have each result."""
    named = (line.value for line in lines.get("machine", ()) if line.what == "device")
    name = next(named, device)
    path = folder / f"card-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
    version = re.search('version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    count = Counter(line.result for part in lines.values() for line in part)
    text = [f"# {name}", "", f"DiverseVAR {version}, {minutes:.1f} minutes: "]
    text[-1] += ", ".join(f"{count[result]} {result}" for result in sorted(count)) + "."
    for part, those in lines.items():
        text += ["", f"## {PARTS[part][0]}", "", "| what | | |", "| --- | --- | --- |"]
        text += [f"| {what} | {result} | {value} |" for what, result, value, _ in those]
    if pictures.exists():
        path.with_suffix(".png").write_bytes(pictures.read_bytes())
        text += ["", f"![The included model, in every type]({path.stem}.png)"]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    everything = [{"part": part, **line._asdict()} for part in lines for line in lines[part]]
    about = {"device": name, "version": version, "minutes": minutes, "lines": everything}
    path.with_suffix(".json").write_text(json.dumps(about, indent=1))
    return path, count


def table(reports: Sequence[dict]) -> Iterator[str]:
    """Reports side by side, in Markdown."""
    yield "| " + " | ".join(("device", "checks passed", *COLUMNS)) + " |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    for found in reports:
        numbers = {line["what"]: line["numbers"] for line in found["lines"]}
        count = Counter(line["result"] for line in found["lines"])
        cells = [found["device"], f"{count['pass']} of {count['pass'] + count['fail']}"]
        values = (numbers.get(what, {}).get(number) for what, number in COLUMNS.values())
        cells += ["" if value is None else f"{value:.3g}" for value in values]
        yield "| " + " | ".join(cells) + " |"
