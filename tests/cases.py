"""The reference cases: tiny models in the official layouts, and what the originals made of them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

REFERENCE = Path(__file__).parent / "reference"

spec = importlib.util.spec_from_file_location("weights", REFERENCE / "weights.py")
weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(weights)


@dataclass(frozen=True)
class Case:
    """A reference case: its description, its expected tensors, and its two checkpoints' paths."""

    name: str
    about: dict
    expected: dict[str, Tensor]
    model: Path
    tokenizer: Path

    @property
    def runs(self) -> list[dict]:
        """Arguments of every run."""
        return self.about["runs"]


def state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The stand-in weights for a table of shapes."""
    return {key: torch.from_numpy(value) for key, value in weights.state_dict(shapes).items()}


def write_case(name: str, folder: Path) -> Case:
    """Write a case's checkpoints as safetensors with a sidecar, as a user would have them."""
    about = json.loads((REFERENCE / f"{name}.json").read_text())
    paths = {}
    for network, shapes in about["shapes"].items():
        paths[network] = folder / f"{name}_{network}.safetensors"
        save_file(state_dict(shapes), paths[network])
        paths[network].with_suffix(".json").write_text(json.dumps(about["config"]))
    tokenizer = paths.pop("vae")
    (model,) = paths.values()
    return Case(name, about, load_file(REFERENCE / f"{name}.safetensors"), model, tokenizer)
