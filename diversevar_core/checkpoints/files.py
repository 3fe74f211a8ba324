"""Checkpoint file -> tensors and facts.

Files are untrusted, and so are their names and paths. Pickles are read with ``weights_only=True``,
so that no code in them runs. At most ``LIMIT`` bytes are read of a header, an index, or a pickle's
program. Every error that a broken or hostile file causes becomes a CheckpointError. Tensors stay
memory-mapped where the format allows it.

What is known of a model comes from its tensors' names and shapes first. Facts that these do not
tell come from the sidecar (``<name>.json`` next to a file, ``config.json`` in a folder), which the
user can write; else from the header of a safetensors file; else from the name of the file and its
folder (``facts_of_name``); else from the families' tables of releases.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError, quote
from ..models.infinity import TASKS

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
SAFETENSORS = (".safetensors", ".sft")
INDEXES = (".safetensors.index.json", ".bin.index.json")
LIMIT = 16 * 2**20  # bytes of a header, index, sidecar or pickle's program; Infinity-8B's: 0.2M
OPCODES = 1_000_000  # of a pickle's program that are searched for names; training files': 0.1M
PIXELS_OF_SIDE = {"256": "0.06M", "512": "0.25M", "1024": "1M"}
SHARD = re.compile(r".*-\d{5}-of-(?!00001)\d{5}", re.DOTALL)  # a file's name without its suffix
# what DDP and torch.compile add to tensors' names
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")

# other files that a download may give, by their first bytes, and what to do about them
NOT_CHECKPOINTS = (
    (
        re.compile(rb"version https://git-lfs"),
        "is a Git LFS pointer, not the file itself; run git lfs pull in its folder, or download "
        "the file itself",
    ),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE),
        "is a web page, which sites send in place of a file that needs a login; open it in a "
        "browser to see why, and download the file again",
    ),
    (re.compile(rb"GGUF"), "is a GGUF file, which is not supported; choose a safetensors file"),
    (re.compile(rb"\Z"), "is empty; download it again"),
)


class CheckpointError(UserError):
    """A file cannot be used; the message says in one sentence why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, and the facts from its header, sidecar and name."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


class BoundedFile(io.FileIO):
    """A file that raises CheckpointError after ``LIMIT`` bytes were read from it in all."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.left = LIMIT

    def read(self, size: int = -1) -> bytes:
        most = self.left + 1
        data = super().read(most if size < 0 else min(size, most))
        self.left -= len(data)
        if self.left < 0:
            raise CheckpointError(
                f"{quote(self.name)} has a table of contents of more than {LIMIT} bytes, which is "
                "too large for a checkpoint; choose another file."
            )
        return data


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn every error that reading a file raises into a CheckpointError."""
    if not os.path.exists(file):
        raise CheckpointError(f"There is no file {quote(file)}; check the name, or get it again.")
    if not os.path.isfile(file) and not os.path.isdir(file):
        raise CheckpointError(f"{quote(file)} is a pipe or a device, not a file; choose a file.")
    try:
        yield
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(
            f"{quote(file)} cannot be read: permission denied; change its permissions."
        ) from error
    except Exception as error:  # a hostile file can cause any, such as MemoryError
        kind = "safetensors file" if is_safetensors(file) else "checkpoint"
        raise CheckpointError(
            f"{quote(file)} is truncated or not a {kind}; download it again."
        ) from error


def is_safetensors(file: Path) -> bool:
    """Whether a file has a safetensors file's suffix."""
    return file.suffix.lower() in SAFETENSORS


def read(path: str | Path, recognise: Callable[[Mapping], bool]) -> Checkpoint:
    """Read a checkpoint's tensors and facts.

    path: ``.safetensors``, ``.pth`` or another pickle, or a folder of shards with its index.
    recognise: whether a dictionary holds the tensors that are wanted (a training checkpoint has
    several, nested). Raises CheckpointError.
    """
    path = Path(path)
    if os.path.isdir(path):
        files, sidecar = shards(path), path / "config.json"
    else:
        check_whole(path)
        files, sidecar = [path], path.with_suffix(".json")
    tensors, facts = {}, facts_of_name(path)
    for file in files:
        found, header = read_file(file)
        tensors |= unwrap(found, recognise)
        facts |= without_other_task(header, file)
    if os.path.isfile(sidecar):
        facts |= without_other_task(read_object(sidecar), sidecar)
    return Checkpoint(tensors, facts)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of one file, without facts. Raises CheckpointError."""
    content, _ = read_file(Path(path))
    return unwrap(content, bool)


def without_other_task(facts: dict[str, object], file: Path) -> dict[str, object]:
    """A header's or sidecar's facts without a ``task`` that is not in ``TASKS``.

    Model catalogues use this entry for other values, such as text-to-image.
    """
    if facts.get("task", TASKS[0]) in TASKS:
        return facts
    logging.info(
        "The task %s in %s is none of %s, and is ignored.",
        quote(facts["task"]),
        quote(file),
        ", ".join(TASKS),
    )
    return {name: fact for name, fact in facts.items() if name != "task"}


def facts_of_name(path: Path) -> dict[str, object]:
    """Facts that only a release's name tells: the pixel budget ``pn``, and ``task`` edit.

    The tensors of Infinity-8B's two sizes (``infinity_8b_512x512_weights``) have the same shapes,
    and so have VAREdit's (``8B-512.pth``, ``8B-1024.pth``, or any file in a folder of that name).
    """
    facts = {}
    edits = re.fullmatch(r"[28]B-(512|1024)", path.stem)
    if edits or "varedit" in f"{path.parent.name}/{path.name}".lower():
        facts["task"] = "edit"
    side = edits or re.search(r"(256|512|1024)x\1", path.name)
    if side:
        facts["pn"] = PIXELS_OF_SIDE[side[1]]
    return facts


def read_object(file: Path) -> dict[str, object]:
    """Read a JSON object from a file. Raises CheckpointError."""
    with reading(file), BoundedFile(file) as opened:
        text = opened.read()
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{quote(file)} is not a JSON object; correct it, or remove it.")
    return content


def index_of(folder: Path) -> Path | None:
    """The index file of a folder's shards, None where there is none."""
    indexes = [file for file in folder.iterdir() if file.name.lower().endswith(INDEXES)]
    return min(indexes, default=None)


def weight_map(index: Path) -> dict[str, str]:
    """An index's tensor names -> names of the files that hold them. Raises CheckpointError."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{quote(index)} lacks its weight_map; download it again.")
    return names


def shards(folder: Path) -> list[Path]:
    """The files of a folder's checkpoint: those of its index, or the only one without an index."""
    with reading(folder):
        if index := index_of(folder):
            # an index is untrusted too: only names are used, so that no path leaves the folder
            return sorted({folder / Path(name).name for name in weight_map(index).values()})
        found = checkpoints_in(folder)
        if not found:
            inner = [f for f in sorted(folder.iterdir()) if f.is_dir() and checkpoints_in(f)]
            what = f"choose the one in it, {quote(inner[0])}" if inner else "download its files"
            raise CheckpointError(f"The folder {quote(folder)} has no checkpoint file; {what}.")
    if len(found) > 1:
        raise CheckpointError(
            f"The folder {quote(folder)} has {len(found)} checkpoint files and no *.index.json; "
            "name one file, or add the index."
        )
    check_whole(found[0])
    return found


def checkpoints_in(folder: Path) -> list[Path]:
    """The safetensors files of a folder or, where it has none, its pickles."""
    files = sorted(folder.iterdir())
    found = [file for file in files if is_safetensors(file)]
    return found or [file for file in files if file.suffix.lower() in PICKLES]


def check_whole(file: Path) -> None:
    """Raise CheckpointError if a file is one shard of several."""
    if is_shard(file):
        raise CheckpointError(
            f"{quote(file)} is one of several parts of a model; put all of them and their "
            f"*.index.json into one folder, and choose the folder ({quote(file.parent)})."
        )


def is_shard(file: Path) -> bool:
    """Whether a file is one shard of several, by its name or the index in its folder."""
    if SHARD.fullmatch(file.stem):
        return True
    try:
        index = cached_index(file.parent, file.parent.stat().st_mtime_ns)
        if index is None:
            return False
        state = index.stat()
        names = cached_names(index, state.st_size, state.st_mtime_ns)
    except (CheckpointError, OSError):
        return False
    return len(names) > 1 and file.name in names


@lru_cache(maxsize=64)
def cached_index(folder: Path, version: int) -> Path | None:
    """``index_of`` a folder, computed once per version of it."""
    return index_of(folder)


@lru_cache(maxsize=64)
def cached_names(index: Path, *version: int) -> frozenset[str]:
    """The names of the files in an index, read once per version of it."""
    return frozenset(weight_map(index).values())


def read_file(file: Path) -> tuple[Mapping, dict[str, object]]:
    """One file's content and the facts of its header. Raises CheckpointError."""
    with reading(file):
        check_kind(file)
        if is_safetensors(file):
            facts = read_header(file).get("__metadata__", {})
            return read_safetensors(file), {name: parse(name, facts[name]) for name in facts}
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"  # as torch recognises a zip
        if zipped:
            read_pickle(file)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            if not imports(file, zipped):
                raise
            raise CheckpointError(
                f"{quote(file)} holds something other than tensors, and code in it is never run; "
                "use a safetensors version of it, or choose another file."
            ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{quote(file)} holds no named tensors; choose another file.")
    return content, {}


def check_kind(file: Path) -> None:
    """Raise CheckpointError if a file's suffix or first bytes show that it is no checkpoint."""
    if file.suffix.lower() == ".json":
        raise CheckpointError(
            f"{quote(file)} is a JSON file, not a checkpoint; choose the checkpoint's file, or the "
            f"folder {quote(file.parent)} where it has several."
        )
    with file.open("rb") as opened:
        start = opened.read(512)
    for sign, what in NOT_CHECKPOINTS:
        if sign.match(start):
            raise CheckpointError(f"{quote(file)} {what}.")


def imports(file: Path, zipped: bool) -> bool:
    """Whether a pickle imports anything beyond what tensors need (which could run code)."""
    with file.open("rb") as opened:
        source = io.BytesIO(read_pickle(file) if zipped else opened.read(LIMIT))
    return any(
        opcode in ("INST", "STACK_GLOBAL")
        or (opcode == "GLOBAL" and not value.startswith(("torch", "collections")))
        for opcode, value in itertools.islice(opcodes(source), OPCODES)
    )


def opcodes(source: io.BytesIO) -> Iterator[tuple[str, object]]:
    """Opcodes and their values, of all pickles in a row (torch files before 1.6 have several)."""
    try:
        while True:
            for opcode, value, _ in pickletools.genops(source):
                yield opcode.name, value
    except ValueError:  # no more pickles, or none at all
        return


def read_header(file: Path) -> dict[str, object]:
    """Read a safetensors file's header: tensor -> type, shape, offsets; ``__metadata__`` -> facts.

    Raises CheckpointError.
    """
    with reading(file), BoundedFile(file) as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        if not isinstance(header, dict):
            raise UserError("the header is not an object")
        return header


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file's tensors, memory-mapped."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def read_pickle(file: Path) -> bytes:
    """The pickle in a checkpoint that torch saved as a zip; its tensors lie in other entries.

    Raises CheckpointError, also where an entry is compressed or encrypted: torch writes neither,
    and a small entry might become gigabytes.
    """
    with reading(file), BoundedFile(file) as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        if any(entry.compress_type or entry.flag_bits & 1 for entry in entries):
            raise CheckpointError(
                f"{quote(file)} is a zip file that torch did not write; choose another."
            )
        (content,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        return archive.read(content)


def names_in(path: Path) -> frozenset[str] | None:
    """The names of a checkpoint's tensors (of a pickle, every text in it), without reading tensors.

    None where the file is broken or has no table of contents; no names where it is one shard of
    several.
    """
    try:
        if not os.path.isdir(path):
            names = frozenset() if is_shard(path) else names_in_file(path)
        else:
            index = index_of(path)
            names = weight_map(index) if index else names_in_file(*shards(path))
    except (CheckpointError, OSError):
        return None
    return frozenset(map(plain_name, names))


def names_in_file(file: Path) -> frozenset[str]:
    """``names_in`` for one file. Raises CheckpointError."""
    with reading(file):
        if is_safetensors(file):
            return frozenset(read_header(file)) - {"__metadata__"}
        texts = (
            text for _, text, _ in itertools.islice(pickletools.genops(read_pickle(file)), OPCODES)
        )
        return frozenset(text for text in texts if isinstance(text, str))


def plain_name(name: str) -> str:
    """A tensor's name without what DDP and ``torch.compile`` add to it."""
    return WRAPPERS.sub("", name)


def parse(name: str, text: str) -> object:
    """A header value: JSON where it can be parsed, else the text; files (``*.json``) stay text."""
    try:
        return text if name.endswith(".json") else json.loads(text)
    except (ValueError, RecursionError):
        return text


def unwrap(content: Mapping, recognise: Callable[[Mapping], bool]) -> dict[str, Tensor]:
    """The first (nested) dictionary that is recognised, or else the tensors of ``content``."""
    level, seen = [content], {id(content)}
    while level:
        below = []
        for mapping in level:
            tensors = tensors_of(mapping)
            if recognise(tensors):
                return tensors
            for value in mapping.values():
                if isinstance(value, Mapping) and id(value) not in seen:  # it may contain itself
                    seen.add(id(value))
                    below.append(value)
        level = below
    return tensors_of(content)


def tensors_of(mapping: Mapping) -> dict[str, Tensor]:
    """The entries that are plain tensors (not expanded from a smaller storage), by plain name."""
    return {
        plain_name(name): value
        for name, value in mapping.items()
        if isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
    }


def version_of(path: Path) -> list[list[object]]:
    """Name, size and time of every file that is read for this file or folder, as JSON values."""
    files = [path, path.with_suffix(".json"), path.with_name("tokenizer.json")]
    if os.path.isdir(path):
        files = sorted(path.iterdir())
    found = [(file.name, os.stat(file)) for file in files if os.path.isfile(file)]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in found]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn errors about a file's contents into CheckpointErrors that name the file."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"{quote(path)} lacks the tensor {quote(error.args[0])}; download it again."
        ) from error
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{quote(path)} cannot be read: {error}.") from error
