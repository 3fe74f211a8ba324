"""The pack loads on a stock ComfyUI, and its core without one."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIRED = set((ROOT / "requirements.txt").read_text().split("\n"))
LIBRARIES = {"PIL" if name == "pillow" else name for name in REQUIRED if name.isidentifier()}
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "transformers"}


def imported(file: Path) -> set[str]:
    """The top-level names of a file's absolute imports."""
    tree = list(ast.walk(ast.parse(file.read_text())))
    names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder, allowed", [("diversevar_core", set()), ("nodes", HOST)])
def test_imports_nothing_that_a_stock_comfyui_lacks(folder, allowed):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= LIBRARIES | allowed, file
