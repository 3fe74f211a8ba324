"""Checkpoint file -> tensors and facts.

Files are untrusted, and so are their names and places: pickles are read with ``weights_only=True``,
so nothing in them runs; of what says where the tensors lie (a header, an index, a pickle's program)
at most ``LIMIT`` bytes are read; and whatever a broken or hostile file makes a reader stumble over
becomes a CheckpointError. Tensors stay memory-mapped where the format allows.

What a model is, is judged by, in this order: its tensors' names and shapes; the header of a
safetensors file; the sidecar (``<name>.json`` beside a file, ``config.json`` in a folder), which is
the user's own word and replaces what the header says; the families' tables of releases; and, for
what none of these can tell, the file's name and its folder's (``facts_of_name``).
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

from ..quote import quote

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
SAFETENSORS = (".safetensors", ".sft")
INDEXES = (".safetensors.index.json", ".bin.index.json")
LIMIT = 16 * 2**20  # bytes of a header, index, sidecar or pickle's program; Infinity-8B's have 0.2M
OPCODES = 1_000_000  # of a pickle's program that are looked at for names; trainers' have 0.1M
PIXELS_OF_SIDE = {"256": "0.06M", "512": "0.25M", "1024": "1M"}
TASKS = ("generate", "edit")
SHARD = re.compile(r".*-\d{5}-of-(?!00001)\d{5}", re.DOTALL)  # a name without its suffix
# what torch puts around a model, or around a part of it that it compiles, is in saved names
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")

# what a download may have brought in a checkpoint's place, by its first bytes, and what to do
IMPOSTORS = (
    (
        re.compile(rb"version https://git-lfs"),
        "only points to a file that Git LFS keeps; run git lfs pull in its folder, or download "
        "the file itself",
    ),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml)", re.IGNORECASE),
        "is a web page, such as a site shows instead of a file that needs a login; open it in a "
        "browser to see which, and download the file again",
    ),
    (re.compile(rb"GGUF"), "is a GGUF file, which is not read; choose the model as safetensors"),
    (re.compile(rb"\Z"), "is empty; download it again"),
)


class CheckpointError(ValueError):
    """A file that cannot be used, in one sentence: what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, and the facts that its header, sidecar or name adds."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


class BoundedFile(io.FileIO):
    """A file of which no more than ``LIMIT`` bytes are read in all; CheckpointError beyond that."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.left = LIMIT

    def read(self, size: int = -1) -> bytes:
        most = self.left + 1
        data = super().read(most if size < 0 else min(size, most))
        self.left -= len(data)
        if self.left < 0:
            raise CheckpointError(
                f"{quote(self.name)} has a table of contents of more than {LIMIT} bytes, as no "
                "checkpoint has; choose another file."
            )
        return data


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever a file makes its reader raise becomes a CheckpointError of one sentence."""
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
            f"{quote(file)} may not be read by this user; change that."
        ) from error
    except Exception as error:  # a hostile file can bring out any, MemoryError among them
        kind = "safetensors file" if is_safetensors(file) else "checkpoint"
        raise CheckpointError(
            f"{quote(file)} is truncated or not a {kind}; download it again."
        ) from error


def is_safetensors(file: Path) -> bool:
    """Whether a file is called a safetensors file."""
    return file.suffix.lower() in SAFETENSORS


def read(path: str | Path, recognise: Callable[[Mapping], bool]) -> Checkpoint:
    """Read the tensors of a checkpoint, and what is known of it beside them.

    path: ``.safetensors``, ``.pth`` or another pickle, or a folder of shards with its index.
    recognise: which of nested dictionaries is wanted (a trainer's checkpoint holds several).
    Raises CheckpointError.
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
        facts |= known(header, file)
    if os.path.isfile(sidecar):
        facts |= known(read_object(sidecar), sidecar)
    return Checkpoint(tensors, facts)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of one file, whatever is said of them in it or beside it.

    Raises CheckpointError.
    """
    content, _ = read_file(Path(path))
    return unwrap(content, bool)


def known(facts: dict[str, object], file: Path) -> dict[str, object]:
    """A header's or sidecar's facts without a ``task`` that is not one of ours.

    Those who catalogue models say so what theirs are for, as in text-to-image.
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
    """What only a release's name tells: a pixel budget (``pn``), and that it edits (``task``).

    Infinity-8B's two sizes (``infinity_8b_512x512_weights``) have the same shapes, and so has
    VAREdit (``8B-512.pth``, ``8B-1024.pth``, also from a folder named after it).
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
    """A file's JSON object. Raises CheckpointError."""
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
    """The index of a folder's shards, None where there is none."""
    indexes = [file for file in folder.iterdir() if file.name.lower().endswith(INDEXES)]
    return min(indexes, default=None)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> the file that holds it. Raises CheckpointError."""
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{quote(index)} lacks its weight_map; download it again.")
    return names


def shards(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint, by its index or, without one, its single file."""
    with reading(folder):
        if index := index_of(folder):
            # an index is untrusted too: a file's name only, never a way out of the folder
            return sorted({folder / Path(name).name for name in weight_map(index).values()})
        found = checkpoints_in(folder)
        if not found:
            inner = [at for at in sorted(folder.iterdir()) if at.is_dir() and checkpoints_in(at)]
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
    """Raise CheckpointError where a file is one shard of several."""
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
        index = known_index(file.parent, file.parent.stat().st_mtime_ns)
        if index is None:
            return False
        state = index.stat()
        names = sharded(index, state.st_size, state.st_mtime_ns)
    except (CheckpointError, OSError):
        return False
    return len(names) > 1 and file.name in names


@lru_cache(maxsize=64)
def known_index(folder: Path, version: int) -> Path | None:
    """``index_of`` a folder, which is listed once for each version of it."""
    return index_of(folder)


@lru_cache(maxsize=64)
def sharded(index: Path, *version: int) -> frozenset[str]:
    """The files that an index names, read once for each version of it."""
    return frozenset(weight_map(index).values())


def read_file(file: Path) -> tuple[Mapping, dict[str, object]]:
    """One file's content and the facts of its header. Raises CheckpointError."""
    with reading(file):
        check_kind(file)
        if is_safetensors(file):
            facts = read_header(file).get("__metadata__", {})
            return read_safetensors(file), {name: parse(name, facts[name]) for name in facts}
        zipped = is_zip(file)
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
    """Raise CheckpointError where a file is by its name or its first bytes of another kind."""
    if file.suffix.lower() == ".json":
        raise CheckpointError(
            f"{quote(file)} is no checkpoint but says something of one; choose the checkpoint's "
            f"file, or the folder {quote(file.parent)} where it is in several."
        )
    with file.open("rb") as opened:
        start = opened.read(512)
    for sign, what in IMPOSTORS:
        if sign.match(start):
            raise CheckpointError(f"{quote(file)} {what}.")


def imports(file: Path, zipped: bool) -> bool:
    """Whether a pickle names anything to import, and so to run, beyond what tensors need."""
    with file.open("rb") as opened:
        source = io.BytesIO(read_pickle(file) if zipped else opened.read(LIMIT))
    return any(
        opcode in ("INST", "STACK_GLOBAL")
        or (opcode == "GLOBAL" and not value.startswith(("torch", "collections")))
        for opcode, value in itertools.islice(opcodes(source), OPCODES)
    )


def opcodes(source: io.BytesIO) -> Iterator[tuple[str, object]]:
    """Opcodes and their values; torch's files from before its zips are several pickles."""
    try:
        while True:
            for opcode, value, _ in pickletools.genops(source):
                yield opcode.name, value
    except ValueError:  # no more pickles, or none at all
        return


def read_header(file: Path) -> dict[str, object]:
    """A safetensors file's header: tensor -> its type, shape and place, ``__metadata__`` -> facts.

    Raises CheckpointError.
    """
    with reading(file), BoundedFile(file) as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
        return header


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, memory-mapped."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def is_zip(file: Path) -> bool:
    """Whether torch will read this file as a zip, by its first bytes."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def read_pickle(file: Path) -> bytes:
    """The pickle in a checkpoint that torch saved as a zip; its tensors lie in other entries.

    Raises CheckpointError, also where an entry is compressed or encrypted: torch writes neither,
    and a small entry might become gigabytes.
    """
    with reading(file), BoundedFile(file) as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        if any(entry.compress_type or entry.flag_bits & 1 for entry in entries):
            raise CheckpointError(
                f"{quote(file)} is a zip that torch has not written; choose another."
            )
        (content,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        return archive.read(content)


def names_in(path: Path) -> frozenset[str] | None:
    """The names of a checkpoint's tensors (in a pickle, every text), with no tensor read.

    None where the file is broken, or of a kind that has no table of contents; no names where it is
    one shard of several.
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
    """``names_in`` one file. Raises CheckpointError."""
    with reading(file):
        if is_safetensors(file):
            return frozenset(read_header(file)) - {"__metadata__"}
        texts = (
            text for _, text, _ in itertools.islice(pickletools.genops(read_pickle(file)), OPCODES)
        )
        return frozenset(text for text in texts if isinstance(text, str))


def plain_name(name: str) -> str:
    """A tensor's name without what torch's wrappers (DDP, ``torch.compile``) put into it."""
    return WRAPPERS.sub("", name)


def parse(name: str, text: str) -> object:
    """A header value: JSON where it is JSON, else the text itself, as of a file that it carries."""
    try:
        return text if name.endswith(".json") else json.loads(text)
    except (ValueError, RecursionError):
        return text


def unwrap(content: Mapping, recognise: Callable[[Mapping], bool]) -> dict[str, Tensor]:
    """The first dictionary of ``content`` that is recognised, or all its own tensors."""
    level, seen = [content], {id(content)}
    while level:
        below = []
        for mapping in level:
            tensors = tensors_of(mapping)
            if recognise(tensors):
                return tensors
            for value in mapping.values():
                if isinstance(value, Mapping) and id(value) not in seen:  # it may hold itself
                    seen.add(id(value))
                    below.append(value)
        level = below
    return tensors_of(content)


def tensors_of(mapping: Mapping) -> dict[str, Tensor]:
    """The entries that are plain tensors, each with an element of its own for all that it shows.

    By ``plain_name``.
    """
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
    """Name, size and time of every file that reading this one or this folder may read, as JSON."""
    files = [path, path.with_suffix(".json"), path.with_name("tokenizer.json")]
    if os.path.isdir(path):
        files = sorted(path.iterdir())
    found = [(file.name, os.stat(file)) for file in files if os.path.isfile(file)]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in found]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name to what the code inside finds missing or wrong in it."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"{quote(path)} lacks the tensor {quote(error.args[0])}; download it again."
        ) from error
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{quote(path)} cannot be read: {error}.") from error
