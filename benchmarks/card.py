"""What holds on this device, and how fast: one command, a report to hand back.

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
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from diversevar_core.cli.load import device_of

from . import meter

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """Checks that share a process: a module's ``CHECKS``, by name, the most important first."""

    title: str
    share: int  # of the time that is left, beside the parts after it
    environment: dict[str, str] = {}


PARTS = {
    "machine": Part("Machine", 1),
    "exact": Part("Exact", 2),
    "fast": Part("Fast", 4),
    # glibc then returns freed memory at once, so that a CPU's peak is what is needed
    "memory": Part("Memory", 1, {"MALLOC_MMAP_THRESHOLD_": "65536"}),
    "host": Part("The host", 4),
}


@dataclass(frozen=True)
class Card:
    """What the checks are told."""

    device: str
    until: float  # by time.time(), when the part must be over
    scratch: Path  # a folder for all parts
    host: Path | None = None  # ComfyUI
    against: Path | None = None  # a checkout of VAR, Infinity or VAREdit
    shape: str | None = None  # of ``SHAPES``, in place of the device's

    @property
    def small(self) -> bool:
        """Whether the device is a CPU, which can only go through the motions."""
        return self.device == "cpu"

    @property
    def pictures(self) -> Path:
        """Where a check draws the report's pictures."""
        return self.scratch / "pictures.png"

    @property
    def python(self) -> str:
        """The host's Python: COMFYUI_PYTHON, or this one."""
        return os.environ.get("COMFYUI_PYTHON", sys.executable)

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


@dataclass
class Report:
    """All lines so far, by part."""

    device: str
    minutes: float
    lines: dict[str, list[Line]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The device's name, or its kind if no check could tell."""
        named = (line.value for line in self.lines.get("machine", ()) if line.what == "device")
        return next(named, self.device)

    def count(self, result: str) -> int:
        """How many lines have this result."""
        return sum(line.result == result for lines in self.lines.values() for line in lines)

    def write(self, folder: Path, pictures: Path) -> Path:
        """Write all files; returns the Markdown's path."""
        path = folder / f"card-{re.sub('[^a-z0-9]+', '-', self.name.lower()).strip('-')}.md"
        version = re.search('version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
        counts = {result: self.count(result) for result in ("pass", "fail", "figure", "skipped")}
        text = [f"# {self.name}", "", f"DiverseVAR {version}, `python -m benchmarks card`, "]
        text[-1] += f"{self.minutes:.1f} minutes: "
        text[-1] += ", ".join(f"{count} {result}" for result, count in counts.items()) + "."
        for part, lines in self.lines.items():
            text += ["", f"## {PARTS[part].title}", "", "| what | | |", "| --- | --- | --- |"]
            for what, result, value, _ in lines:
                shown = f"**{result}**" if result == "fail" else result
                text.append(f"| {what} | {shown} | {value} |")
        if pictures.exists():
            path.with_suffix(".png").write_bytes(pictures.read_bytes())
            text += ["", f"![The same images in every type]({path.stem}.png)"]
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        about = {"device": self.name, "version": version, "minutes": self.minutes} | counts
        lines = [{"part": p, **line._asdict()} for p, lines in self.lines.items() for line in lines]
        path.with_suffix(".json").write_text(json.dumps(about | {"lines": lines}, indent=1))
        return path


def clean(text: str, folders: Sequence[Path]) -> str:
    """Text for a cell of a table, without the user's folders: of a path, its last name."""
    text = " ".join(text.split()).replace("|", "/")
    for folder in map(str, folders):
        for written in (folder, repr(folder)[1:-1]):
            text = text.replace(written, "")
    if len(text) > 600:
        text = f"{text[:300]} ... {text[-300:]}"
    return re.sub(r"(?<!\w)(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\"]+[\\/]+)*(?=[^\s\\/])", "", text)


def work(part: str, done: int, card: Card, pipe: Connection) -> None:
    """Run a part's checks but the first; sends their names, and of each its name and its lines."""
    torch.set_grad_enabled(False)
    meter.use(card.device)
    checks = list(importlib.import_module(f"{__package__}.{part}").CHECKS.items())[done:]
    pipe.send([name for name, _ in checks])
    for name, check in checks:
        pipe.send(name)
        try:
            for line in check(card):
                pipe.send(line)
        except Exception as error:
            pipe.send(Line(name, "fail", f"{type(error).__name__}: {error}"))
            raise  # a card may be of no more use to this process


def run_part(part: str, card: Card) -> Iterator[Line]:
    """A part's lines, as they come; it is over at ``card.until``."""
    spawn, done, rest = multiprocessing.get_context("spawn"), 0, [part]
    while rest and card.left > 0:
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=work, args=(part, done, card, theirs))
        with environment(PARTS[part].environment):
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
            elif isinstance(sent, str):
                began, name, failed, done = time.time(), sent, False, done + 1
                rest.remove(sent)
            else:
                failed = sent.result == "fail"
                yield sent
        over = card.left <= 0
        if over and process.is_alive():
            yield Line(name, "skipped", f"stopped after {time.time() - began:.0f} s: no time left")
        process.join(max(card.left, 0))
        stop(process)
        if process.exitcode and not over and not failed:
            yield Line(name, "fail", f"the process ended with code {process.exitcode}")
        if name == part:  # it ended before its first check
            return
    for name in rest:
        yield Line(name, "skipped", "no time left")


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Inside, these variables are set for processes that are started."""
    os.environ |= variables
    yield
    for name in variables:
        del os.environ[name]


def stop(process: multiprocessing.Process) -> None:
    """End a process, with those that it started, if it has not ended."""
    if process.is_alive():
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.join()


def run(args: Namespace) -> int:
    """Run all parts, or one; write the report after each. Returns the number of failures."""
    if args.table is not None:
        print(*table([json.loads(path.read_text()) for path in args.table]), sep="\n")
        return 0
    device, began = device_of(args.device), time.time()
    report = Report(device, 0.0)
    parts = [part for part in PARTS if part in ("machine", args.only or part)]
    parts = [part for part in parts if part != "host" or args.host]
    with tempfile.TemporaryDirectory() as scratch:
        card = Card(device, 0.0, Path(scratch), args.host, args.against, args.shape)
        folders = [Path(scratch), ROOT, *filter(None, (args.host, args.against)), Path.home()]
        for i, part in enumerate(parts):
            left = began + 60 * args.minutes - time.time()
            share = PARTS[part].share / sum(PARTS[later].share for later in parts[i:])
            lines = report.lines.setdefault(part, [])
            for line in run_part(part, replace(card, until=time.time() + share * left)):
                what, value = (clean(text, folders) for text in (line.what, line.value))
                lines.append(line._replace(what=what, value=value))
                print(f"{part}: {what}: {line.result} {value}", flush=True)
            report.minutes = (time.time() - began) / 60
            path = report.write(args.out, card.pictures)
    print(f"\n{path}: please send it with {path.stem}.json and .png", file=sys.stderr)
    return report.count("fail")


# of docs/speed.md's table: column -> the line, and which of its numbers
COLUMNS = {
    "2B, s an image": ("infinity-2b, batch 1", "seconds"),
    "2B, images a minute in a batch of 4": ("infinity-2b, batch 4", "a minute"),
    "2B, peak GB": ("infinity-2b, batch 1, peak", "GB"),
    "of what is asked for, %": ("infinity-2b, batch 1, peak", "%"),
    "8B, s an image": ("infinity-8b, batch 1", "seconds"),
    "SSR + SAR, %": ("infinity-2b, SSR + SAR", "%"),
}


def table(reports: Sequence[dict]) -> Iterator[str]:
    """Reports side by side, in Markdown."""
    yield "| device | checks passed | " + " | ".join(COLUMNS) + " |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    for report in reports:
        numbers = {line["what"]: line["numbers"] for line in report["lines"]}
        cells = [f"{report['pass']} of {report['pass'] + report['fail']}"]
        for what, number in COLUMNS.values():
            value = numbers.get(what, {}).get(number)
            cells.append("" if value is None else f"{value:.3g}")
        yield f"| {report['device']} | " + " | ".join(cells) + " |"
