"""Images and features on disk: each file is written once, atomically, by any number of processes.

Images are divided into units of a few prompts. A unit is always made by one process and in the same
way, so the files do not depend on interruptions or on the number of processes.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from diversevar_core.images import to_pil

from .features import Encode, Encoder
from .generate import Drawn
from .protocols import Pictures, Protocol, png

UNIT = 8  # pictures, about
MANIFEST = "manifest.json"


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def units(pictures: int, each: int = 1) -> list[range]:
    """The numbers of the pictures, in units that keep the ``each`` of one prompt together."""
    size = max(UNIT // each, 1) * each
    return [range(start, min(start + size, pictures)) for start in range(0, pictures, size)]


def claim(folder: Path, facts: Mapping[str, str]) -> None:
    """Write what a folder's pictures are made with; ValueError where it already says otherwise."""
    if not (folder / MANIFEST).exists():
        write(folder / MANIFEST, json.dumps(facts, indent=1).encode())
    found = made_with(folder)
    for name in facts:
        if found.get(name) != facts[name]:
            raise ValueError(
                f"The pictures in {folder} were made with another {name} ({found.get(name)}, and "
                f"now {facts[name]}); choose another --out, or delete that folder."
            )


def made_with(folder: Path) -> dict[str, str]:
    """What the folder's pictures are made with."""
    return json.loads((folder / MANIFEST).read_text())


def record_file(folder: Path, unit: range) -> Path:
    """The file with the model's own scores of a unit's pictures, and their times."""
    return folder / "drawn" / f"{unit[0]:06d}.json"


def make(
    folder: Path, protocol: Protocol, unit: range, draw: Callable[[Sequence[str]], Drawn]
) -> int:
    """Draw a unit, unless it is complete; returns the number of drawn pictures.

    draw: the unit's prompts -> its pictures. They are always drawn in the same batches, as rounding
    on a GPU depends on the batch.
    """
    paths = [folder / protocol.file(number) for number in unit]
    record, drawn = record_file(folder, unit), 0
    if not all(path.exists() for path in [*paths, record]):
        found = draw([protocol.prompts[number // protocol.each].text for number in unit])
        for path, picture in zip(paths, found.pictures, strict=True):
            if not path.exists():
                write(path, png(to_pil(picture)))
        if not record.exists():
            write(record, json.dumps({"scores": found.scores, "seconds": found.seconds}).encode())
        drawn = len(unit)
    samples = protocol.samples(folder)
    for number in unit[:: protocol.each]:
        extra = protocol.extra(number // protocol.each)
        if extra is not None and not (folder / extra).exists():
            pictures = [samples.read(number + j) for j in range(protocol.each)]
            content = protocol.extra_content(number // protocol.each, pictures)
            write(folder / extra, content)
    return drawn


def own_scores(folder: Path, all_units: Sequence[range]) -> dict[str, Tensor]:
    """Name -> the model's own scores of all pictures (N,), float64."""
    parts = [json.loads(record_file(folder, unit).read_text())["scores"] for unit in all_units]
    return {
        name: torch.tensor([value for part in parts for value in part[name]]).double()
        for name in parts[0]
    }


def pace(folder: Path, all_units: Sequence[range]) -> dict[str, float]:
    """Kind of work -> seconds of one process per thousand pictures."""
    parts = [json.loads(record_file(folder, unit).read_text())["seconds"] for unit in all_units]
    pictures = sum(map(len, all_units))
    return {name: 1000 * sum(part[name] for part in parts) / pictures for name in parts[0]}


def features_file(folder: Path, encoder: Encoder, unit: range) -> Path:
    """The file of a unit's features."""
    return folder / "features" / f"{encoder.name}-{encoder.digest}" / f"{unit[0]:06d}.safetensors"


def encode(
    folder: Path, pictures: Pictures, encoder: Encoder, unit: range, network: Encode
) -> None:
    """Write a unit's features."""
    read = [pictures.read(number) for number in unit]
    found = network(read, [pictures.prompts[number] for number in unit])
    content = save({name: tensor.contiguous() for name, tensor in found.items()})
    write(features_file(folder, encoder, unit), content)


def all_features(folder: Path, encoder: Encoder, all_units: Sequence[range]) -> dict[str, Tensor]:
    """Name -> features (N, C) or scores (N,) of all units."""
    parts = [load_file(features_file(folder, encoder, unit)) for unit in all_units]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
