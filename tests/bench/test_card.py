"""The report on a device: all of it small on a CPU, and what becomes of it when a card fails."""

import getpass
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comfy_host import HOW_TO, ROOT, find

from benchmarks import host as part
from benchmarks.card import COLUMNS, Card, Line, clean, run_part, table

MINUTES = 2  # of wall time at most


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The JSON of a run of the command, as a user named alice would send it."""
    folder = tmp_path_factory.mktemp("alice")
    command = [sys.executable, "-m", "benchmarks", "card", "--device", "cpu"]
    command += ["--minutes", str(MINUTES), "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.glob("*")) and "card-cpu.md" in done.stderr
    return folder / "card-cpu.json"


def lines(report: Path, part: str) -> dict[str, dict]:
    """The lines of a part, by what they are of."""
    every = json.loads(report.read_text())["lines"]
    return {line["what"]: line for line in every if line["part"] == part}


def test_all_parts_are_in_the_report_and_nothing_fails(report):
    every = json.loads(report.read_text())["lines"]
    assert {line["result"] for line in every} <= {"pass", "figure", "skipped"}
    assert {line["part"] for line in every} == {"machine", "exact", "fast", "memory"}
    assert lines(report, "machine")["device"]["value"] == "CPU"
    originals = [line for what, line in lines(report, "exact").items() if ", run " in what]
    assert originals and all(line["result"] == "pass" for line in originals)
    image = lines(report, "fast")["infinity-tiny, batch 1"]["numbers"]
    assert image["a minute"] == pytest.approx(60 / image["seconds"])
    text = report.with_suffix(".md").read_text()
    assert all(f"| {line['what']} | {line['result']} | {line['value']} |" in text for line in every)


def test_the_memory_asked_for_is_what_is_used(report):
    """As the process's own peak says, which other processes do not change."""
    if "infinity-tiny, batch 4, peak" not in lines(report, "memory"):
        pytest.skip("there was no time to measure it")
    assert abs(lines(report, "memory")["infinity-tiny, batch 4, peak"]["numbers"]["%"]) < 25


def test_a_report_says_nothing_of_the_user(report):
    for file in (report, report.with_suffix(".md")):
        text = file.read_text()
        for secret in (ROOT, Path.home(), report.parent, "alice", platform.node()):
            assert str(secret) not in text
        assert getpass.getuser() not in re.split(r"\W", text)


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "[Errno 2] No such file: '/home/alice/my models/a.pth'",
            "[Errno 2] No such file: 'a.pth'",
        ),
        (r"C:\Users\alice\ComfyUI\main.py ended", "main.py ended"),
        (repr(r"C:\Users\alice\main.py") + " ended", "'main.py' ended"),
        ("12 / 5 GB/s | 3/4", "12 / 5 GB/s / 3/4"),
        ("File /opt/alice/lib.py, line 3\n  x\n", "File lib.py, line 3 x"),
    ],
)
def test_of_a_path_its_last_name_remains(text, shown):
    assert clean(text, [Path("/home/alice/my models")]) == shown


def test_what_a_bad_card_does_is_a_line_and_the_rest_goes_on(tmp_path):
    sent = list(run_part("troubles", Card("cpu", time.time() + 300, tmp_path)))
    by_name = {line.what: line for line in sent}
    assert by_name["raises, first"].result == "pass"
    assert by_name["raises"].result == "fail" and "no kernel" in by_name["raises"].value
    assert [by_name[f"batch {n}"].result for n in (1, 2**50)] == ["figure", "skipped"]
    assert by_name["dies, first"].result == "pass"
    assert by_name["dies"] == Line("dies", "fail", "the process ended with code -6")
    assert by_name["works"].numbers == {"seconds": 1.0}
    assert len(sent) == 7


def test_a_check_that_hangs_is_stopped_in_time(tmp_path):
    until = time.time() + 20
    *_, hung, works = run_part("hanging", Card("cpu", until, tmp_path))
    assert time.time() < until + 20
    assert hung.result == works.result == "skipped"
    assert re.fullmatch(r"stopped after \d+ s: no time left", hung.value)
    assert works.value == "no time left"


def test_a_host_draws_with_random_weights_and_is_cancelled(tmp_path, monkeypatch):
    """The quicker half of the host's part; the rest are prompts of other tests."""
    if (found := find()) is None:
        pytest.skip(HOW_TO)
    monkeypatch.setenv("COMFYUI_PYTHON", found[1])
    card = Card("cpu", time.time() + 900, tmp_path, found[0])
    part.write_models(tmp_path / "base" / "models", small=True)
    with part.running(card) as host:
        plain, again, other, lora = (
            part.attempt(card, host, "", prompt, "large", equal)
            for prompt, equal in (
                (part.LARGE, None),
                (part.changed(part.LARGE, filename_prefix="again"), True),
                (part.changed(part.LARGE, seed=1), True),
                (part.with_lora(part.LARGE), False),
            )
        )
        refused = part.attempt(card, host, "", part.changed(part.LARGE, vae_name="none"))
        cancelled = part.cancel(card, host)
    assert [line.result for line in (plain, again, other, lora)] == ["pass", "pass", "fail", "pass"]
    assert refused.result == "fail" and "none" in refused.value
    assert cancelled.result == "pass"


def test_reports_become_a_table():
    numbers = {"infinity-2b, batch 1": {"seconds": 2.5}, "infinity-2b, SSR + SAR": {"%": 1.25}}
    every = [{"what": what, "result": "figure", "numbers": n} for what, n in numbers.items()]
    every += [
        {"what": "a", "result": "pass", "numbers": {}},
        {"what": "b", "result": "fail", "numbers": {}},
    ]
    head, rule, row = table([{"device": "NVIDIA X", "lines": every}])
    assert len(head.split("|")) == len(rule.split("|")) == len(row.split("|")) == len(COLUMNS) + 4
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["| device"] == "| NVIDIA X" and cells["checks passed"] == "1 of 2"
    assert cells["2B, s an image"] == "2.5" and cells["SSR + SAR, %"] == "1.25"
