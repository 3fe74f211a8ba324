"""The small models that come with the pack."""

from __future__ import annotations

import json
from pathlib import Path

from .files import read_header

FOLDER = Path(__file__).parents[2] / "models"
NAME = "emoji"  # the default model

MODEL = FOLDER / NAME / "transformer.safetensors"
VAE = FOLDER / NAME / "vae.safetensors"
TEXT_ENCODER = FOLDER / NAME / "text_encoder.safetensors"


def all_of(file: str) -> dict[str, Path]:
    """Model name -> file, for every included model with a file of this name; the default first."""
    files = {path.parent.name: path for path in sorted(FOLDER.glob(f"*/{file}"))}
    return {NAME: files[NAME]} | files


def prompts(text_encoder: Path = TEXT_ENCODER) -> list[str]:
    """The prompts that an included model knows."""
    return json.loads(read_header(text_encoder)["__metadata__"]["prompts"])
