"""The small emoji model that comes with the pack, so that everything runs without a download."""

from __future__ import annotations

from pathlib import Path

NAME = "emoji"
FOLDER = Path(__file__).parents[1] / "models" / "emoji"

MODEL = FOLDER / "transformer.safetensors"
TOKENIZER = FOLDER / "tokenizer.safetensors"
TEXT_ENCODER = FOLDER / "text_encoder.safetensors"
