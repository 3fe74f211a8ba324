"""Checkpoint file -> tensors and facts.

Files are untrusted: pickles are read with ``weights_only=True``, so nothing in them runs. Tensors
stay memory-mapped where the format allows.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = (".pth", ".pt", ".ckpt", ".bin")


class CheckpointError(ValueError):
    """A file that cannot be used, in one sentence: what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, and the facts that its header or sidecar adds."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


def read(path: str | Path, recognise: Callable[[Mapping], bool]) -> Checkpoint:
    """Read the tensors of a checkpoint.

    path: ``.safetensors``, ``.pth`` or another pickle, or a folder of shards with its index.
    recognise: which of nested dictionaries is wanted (a trainer's checkpoint holds several).
    Facts come from the safetensors header and from ``<name>.json`` beside the file, whose values
    win. Raises CheckpointError.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"There is no file {path}; check the name and the folder.")
    sidecar = path.with_suffix(".json")
    if path.is_dir():
        files, sidecar = shards(path), path / "config.json"
    else:
        files = [path]
    tensors, facts = {}, {}
    for file in files:
        found, header = read_file(file)
        tensors |= unwrap(found, recognise)
        facts |= header
    if sidecar.is_file():
        try:
            facts |= json.loads(sidecar.read_text())
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{sidecar} is not a JSON object ({error}); mend it.") from error
    return Checkpoint(tensors, facts)


def shards(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint, by its index or, without one, its single file."""
    indexes = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    for index in indexes[:1]:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # an index is untrusted too: a file's name only, never a way out of the folder
        return [folder / Path(name).name for name in names]
    files = sorted(folder.glob("*.safetensors")) or sorted(
        file for file in folder.iterdir() if file.suffix in PICKLES
    )
    if len(files) != 1:
        raise CheckpointError(
            f"The folder {folder} has {len(files)} checkpoint files and no *.index.json; "
            "name one file, or add the index."
        )
    return files


def read_file(file: Path) -> tuple[Mapping, dict[str, object]]:
    """One file's content and the facts of its header."""
    try:
        if file.suffix in (".safetensors", ".sft"):
            with safe_open(file, framework="pt") as opened:
                header = {name: parse(text) for name, text in (opened.metadata() or {}).items()}
                return {name: opened.get_tensor(name) for name in opened.keys()}, header  # noqa: SIM118
        content = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {file}; the download is incomplete.") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({error}); download it again."
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds something other than tensors, and code in it is never run; "
            "use a safetensors version of it, or choose another file."
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a checkpoint; download it again."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds no named tensors; choose another file.")
    return content, {}


def names_in(path: Path) -> frozenset[str] | None:
    """The names of a checkpoint's tensors (in a pickle, every text), with no tensor read.

    None where the file is broken, or of a kind that has no table of contents.
    """
    try:
        if path.is_dir():
            indexes = [*path.glob("*.safetensors.index.json"), *path.glob("*.bin.index.json")]
            if indexes:
                return frozenset(json.loads(indexes[0].read_text())["weight_map"])
            (path,) = shards(path)
        if path.suffix in (".safetensors", ".sft"):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                return frozenset(json.loads(file.read(min(length, path.stat().st_size))))
        with zipfile.ZipFile(path) as archive:
            (content,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            texts = (text for _, text, _ in pickletools.genops(archive.read(content)))
            return frozenset(text for text in texts if isinstance(text, str))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def parse(text: str) -> object:
    """A header value: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def unwrap(content: Mapping, recognise: Callable[[Mapping], bool]) -> dict[str, Tensor]:
    """The first dictionary of ``content`` that is recognised, or all its own tensors."""
    level = [content]
    while level:
        for mapping in level:
            if recognise(mapping):
                return tensors_of(mapping)
        level = [v for mapping in level for v in mapping.values() if isinstance(v, Mapping)]
    return tensors_of(content)


def tensors_of(mapping: Mapping) -> dict[str, Tensor]:
    """The entries that are tensors."""
    return {name: value for name, value in mapping.items() if isinstance(value, Tensor)}


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name to what the code inside finds missing or wrong in it."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks the tensor {error.args[0]}; download it again."
        ) from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
