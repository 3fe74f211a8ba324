"""Checkpoints of the reference cases, written once."""

import subprocess
import sys
from pathlib import Path

import pytest
from cases import REFERENCE, Case, write_case, write_text_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def cases(folder) -> dict[str, Case]:
    names = sorted(file.stem for file in REFERENCE.glob("*.json"))
    return {name: write_case(name, folder) for name in names}


@pytest.fixture(scope="session")
def var_case(cases) -> Case:
    return cases["var_plain"]


@pytest.fixture(scope="session")
def infinity_case(cases) -> Case:
    return cases["infinity_plain"]


@pytest.fixture(scope="session")
def text_encoder(folder) -> Path:
    return write_text_encoder(folder / "t5")


@pytest.fixture
def command_line():
    """Run ``python -m diversevar_core`` with these arguments; returns the finished process."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "diversevar_core", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    return run
