"""Checkpoints of the reference cases, written once."""

import subprocess
from pathlib import Path

import pytest
from cases import REFERENCE, Case, write_case, write_text_encoder

import tests.trace
from diversevar_core.__main__ import main
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.models.family import Family
from diversevar_core.vae.vae import VAE


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


@pytest.fixture(scope="module")
def pair(infinity_case) -> tuple[Family, VAE]:
    return load_model(infinity_case.model), load_vae(infinity_case.vae)


@pytest.fixture(scope="session")
def text_encoder(folder) -> Path:
    return write_text_encoder(folder / "t5")


@pytest.fixture
def command_line(capsys):
    """Run the command line with these arguments; returns its exit code and output."""

    return runner(main, capsys)


@pytest.fixture
def trace(capsys):
    """``python -m tests.trace`` with these arguments; returns its exit code and output."""
    return runner(tests.trace.main, capsys)


def runner(main, capsys):
    def run(*arguments: object) -> subprocess.CompletedProcess:
        code, error = 0, ""
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code, error = (end.code, "") if isinstance(end.code, int) else (1, end.code)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err + error)

    return run
