"""The small models that come with the pack, so that everything runs without a download."""

from __future__ import annotations

import json
from pathlib import Path

from .files import read_header

FOLDER = Path(__file__).parents[2] / "models"
NAME = "emoji"  # the one that is taken where no other is named

MODEL = FOLDER / NAME / "transformer.safetensors"
TOKENIZER = FOLDER / NAME / "tokenizer.safetensors"
TEXT_ENCODER = FOLDER / NAME / "text_encoder.safetensors"


def all_of(file: str) -> dict[str, Path]:
    """Every included model that has a file of this name: the model's name -> the file."""
    found = {path.parent.name: path for path in sorted(FOLDER.glob(f"*/{file}"))}
    return {NAME: found[NAME]} | found


def prompts() -> list[str]:
    """All prompts that the included text-to-image model was trained on."""
    return json.loads(read_header(TEXT_ENCODER)["__metadata__"]["prompts"])
