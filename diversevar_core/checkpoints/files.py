"""Checkpoint file -> tensors and facts.

Files are untrusted, and so are their names and paths. Pickles are read with ``weights_only=True``,
so that no code in them runs. At most ``LIMIT`` bytes are read of a header or an index, and
``PROGRAM`` of a pickle's own. Every error that a broken or hostile file causes becomes a
CheckpointError. Tensors stay memory-mapped if the format allows it.

What is known of a model comes from its tensors' names and shapes first. Facts that these do not
tell come from the sidecar (``<name>.json`` next to a file, ``config.json`` in a folder), which the
user can write; else from the header of a safetensors file, or the trainer's ``args`` in a pickle;
else from the name of the file and its folder (``facts_of_name``); else from the families' tables of
releases.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError, quote
from ..models.infinity import TASKS

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
SAFETENSORS = (".safetensors", ".sft")
INDEXES = (".safetensors.index.json", ".bin.index.json")
LIMIT = 8 * 2**20  # bytes of a header, index or sidecar; flan-T5's tokenizer.json: 2.4M
PROGRAM = 4 * 2**20  # bytes of a pickle without its tensors' data; Infinity-8B's: 0.2M
PIXELS_OF_SIDE = {"256": "0.06M", "512": "0.25M", "1024": "1M"}
SHARD = re.compile(r"(.*-)?\d{5}-of-(?!00001)\d{5}", re.DOTALL)  # a file's name without its suffix
# what torch.compile, FSDP, activation checkpointing put into tensors' names
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# what DDP, trainers and repackers put before them
PREFIX = re.compile(
    r"(?:(?:module|model|gpt|var|vae|transformer|diffusion_model|first_stage_model)\.)*"
)
BITSANDBYTES = re.compile(r"\.SCB\Z|\.weight\.(absmax|quant_map|quant_state)\b")
# of the official trainers' arguments, those that tensors do not tell
ARGS = ("pn", "patch_nums", "rope2d_normalized_by_hw", "add_lvl_embeding_only_first_block")

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
    (re.compile(rb'\s*\{\s*"\w'), "is a JSON file; choose the checkpoint's file, or its folder"),
    (re.compile(rb"\Z"), "is empty; download it again"),
)


def scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """numpy's scalar in a pickle. numpy's own function would make one of gigabytes from no data."""
    return np.frombuffer(data, dtype, count=1)[0]


# Infinity's trainer stores a numpy.float64 among its arguments, which these make readable. They
# stay allowed for the process: a context manager would take them from another thread's load.
torch.serialization.add_safe_globals(
    [
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
        (scalar, "numpy.core.multiarray.scalar"),  # numpy 1
        (scalar, "numpy._core.multiarray.scalar"),  # numpy 2
        (codecs.encode, "_codecs.encode"),  # makes the scalar's data
    ]
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
            raise too_large(self.name)
        return data


def too_large(file: str | Path) -> CheckpointError:
    """The error to raise for a file that describes more than any release has."""
    return CheckpointError(
        f"{quote(file)} has a table of contents that is too large for a checkpoint; choose another "
        "file."
    )


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn every error that reading a file raises into a CheckpointError."""
    if not os.path.isfile(file) and not os.path.isdir(file):  # such as a pipe, which never ends
        raise CheckpointError(f"There is no file {quote(file)}; check the name, or get it again.")
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can cause any, such as MemoryError
        what = "is truncated or not a checkpoint; download it again"
        if isinstance(error, PermissionError):
            what = "cannot be read: permission denied; change its permissions"
        elif isinstance(error, pickle.UnpicklingError):
            what = (
                "holds something other than tensors, and code in it is never run; download it "
                "again, or use a safetensors version of it"
            )
        raise CheckpointError(f"{quote(file)} {what}.") from error


def is_safetensors(file: Path) -> bool:
    """Whether a file has a safetensors file's suffix."""
    return file.suffix.lower() in SAFETENSORS


def load_file(file: Path) -> Mapping:
    """The content of a safetensors file or a pickle, memory-mapped if its format allows it."""
    if not is_safetensors(file):
        return load_pickle(file)
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def load_pickle(file: Path, mmap: bool = True) -> Mapping:
    """The content of a file that torch saved."""
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"  # as torch recognises a zip; older files are none
    if zipped:
        check_zip(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap and zipped)


def check_zip(file: Path) -> None:
    """Raise CheckpointError if reading a zip file's pickle may take more than ``PROGRAM`` bytes.

    Entries must be plain: torch neither compresses nor encrypts them, and a small one that is
    compressed may become gigabytes.
    """
    with BoundedFile(file) as opened, zipfile.ZipFile(opened) as archive:
        for entry in archive.infolist():
            odd = entry.compress_type or entry.flag_bits & 1
            if odd or (entry.filename.endswith("/data.pkl") and entry.file_size > PROGRAM):
                raise too_large(file)


def read(
    path: str | Path,
    recognise: Callable[[Mapping], bool],
    load: Callable[[Path], Mapping] = load_file,
) -> Checkpoint:
    """Read a checkpoint's tensors and facts.

    path: ``.safetensors``, ``.pth`` or another pickle, or a folder with one of them, or with shards
    and their index. recognise: whether a dictionary holds the tensors that are wanted (a training
    checkpoint has several, nested). load: what reads one file's content, after its header was
    checked. Raises CheckpointError.
    """
    path = Path(path)
    files = files_of(path)
    content, facts = {}, facts_of_name(files[0].parent.name) | facts_of_name(files[0].name)
    for file in files:
        more, header = read_file(file, load)
        content |= more
        facts |= without_other_task(header, file)
    for sidecar in (path / "config.json", files[0].with_suffix(".json")):
        if os.path.isfile(sidecar) and sidecar.name != "tokenizer.json":  # a vocabulary
            facts |= without_other_task(read_object(sidecar), sidecar)
    tensors = unwrap(content, recognise)
    if any(BITSANDBYTES.search(name) for name in tensors):
        raise CheckpointError(
            f"{quote(path)} is quantized by bitsandbytes, which is not supported; choose a file in "
            "float16, bfloat16 or float32."
        )
    return Checkpoint(tensors, facts)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of one file under their own names, without facts. Raises CheckpointError."""
    content, _ = read_file(file)
    return next(filter(None, map(tensors_of, mappings(content))), {})


def read_file(
    file: Path, load: Callable[[Path], Mapping] = load_file
) -> tuple[Mapping, dict[str, object]]:
    """One file's content, and the facts of its header or its trainer. Raises CheckpointError."""
    with reading(file):
        check_kind(file)
        if is_safetensors(file):
            facts = read_header(file).get("__metadata__", {})
            return load(file), {name: parse(name, facts[name]) for name in facts}
        content = load(file)
        args = content.get("args")
        args = args if isinstance(args, Mapping) else {}
        return content, {name: args[name] for name in ARGS if name in args}


def without_other_task(facts: dict[str, object], file: Path) -> dict[str, object]:
    """Facts without a ``task`` of another kind, such as text-to-image in model catalogues."""
    task = facts.get("task", TASKS[0])
    if task in TASKS:
        return facts
    logging.info("%s: the task %s is ignored; ours are %s.", quote(file), quote(task), TASKS)
    return {name: fact for name, fact in facts.items() if name != "task"}


def facts_of_name(name: str) -> dict[str, object]:
    """Facts that only the name of a release's file or folder tells: ``pn`` and ``task``.

    The tensors of Infinity-8B's two sizes (``infinity_8b_512x512_weights``) have the same shapes,
    and so have VAREdit's (``8B-512.pth``, ``8B-1024.pth``).
    """
    facts = {}
    edits = re.match(r"[28]B-(512|1024)(\.|\Z)", name)
    if edits or "varedit" in name.lower():
        facts["task"] = "edit"
    side = edits or re.search(r"(256|512|1024)x\1", name)
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
    """The index file of a folder's shards, None if there is none."""
    indexes = [file for file in folder.iterdir() if file.name.lower().endswith(INDEXES)]
    return min(indexes, default=None)


def weight_map(index: Path) -> dict[str, Path]:
    """An index's tensor names -> the files next to it that hold them. Raises CheckpointError."""
    with reading(index):
        # an index is untrusted too: only names are used, so that no path leaves the folder
        files = read_object(index)["weight_map"].items()
        return {name: index.with_name(Path(file).name) for name, file in files}


def files_of(path: Path) -> list[Path]:
    """A checkpoint's files: the path itself, or a folder's shards, or the only file in it."""
    files = [path]
    if os.path.isdir(path):
        with reading(path):
            if (index := index_of(path)) and (shards := weight_map(index)):
                return sorted({*shards.values()})
            files = sorted(path.iterdir())
        files = [file for file in files if is_safetensors(file)] or [
            file for file in files if file.suffix.lower() in PICKLES
        ]
    if len(files) != 1:
        raise CheckpointError(
            f"The folder {quote(path)} has {len(files)} checkpoint files and no *.index.json; "
            "choose one file, or the folder that has them, or download what is missing."
        )
    if SHARD.fullmatch(files[0].stem):
        raise CheckpointError(
            f"{quote(files[0])} is one of several parts of a model; put all of them and their "
            f"*.index.json into one folder, and choose the folder ({quote(files[0].parent)})."
        )
    return files


def check_kind(file: Path) -> None:
    """Raise CheckpointError if a file's first bytes show that it is no checkpoint."""
    with file.open("rb") as opened:
        start = opened.read(512)
    for sign, what in NOT_CHECKPOINTS:
        if sign.match(start):
            raise CheckpointError(f"{quote(file)} {what}.")


def read_header(file: Path) -> dict[str, object]:
    """Read a safetensors file's header: tensor -> type, shape, offsets; ``__metadata__`` -> facts.

    Raises CheckpointError.
    """
    with reading(file), BoundedFile(file) as opened:
        return dict(json.loads(opened.read(int.from_bytes(opened.read(8), "little"))))


def names_in(path: Path) -> frozenset[str] | None:
    """The plain names of a checkpoint's tensors, without reading tensors.

    None if the file is broken or has no table of contents; no names if it is one shard of several.
    """
    try:
        if SHARD.fullmatch(path.stem):
            return frozenset()
        if os.path.isdir(path) and (index := index_of(path)):
            names = weight_map(index)
        else:
            names = names_in_file(*files_of(path))
    except (CheckpointError, OSError):
        return None
    return frozenset(parted(name)[1] for name in names)


def names_in_file(file: Path) -> Collection[str]:
    """``names_in`` for one file, with prefixes. Raises CheckpointError."""
    with reading(file):
        if is_safetensors(file):
            return read_header(file).keys() - {"__metadata__"}
        check_zip(file)  # torch's files from before 1.6 are none, and have no table of contents
        content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        return {name for mapping in mappings(content) for name in tensors_of(mapping)}


def parted(name: str) -> tuple[str, str]:
    """A tensor's name without ``WRAPPERS``: the prefix of its model, and the rest."""
    name = WRAPPERS.sub("", name)
    end = PREFIX.match(name).end()
    return name[:end], name[end:]


def parse(name: str, text: str) -> object:
    """A header value: JSON if it can be parsed, else the text; files (``*.json``) stay text."""
    try:
        return text if name.endswith(".json") else json.loads(text)
    except (ValueError, RecursionError):
        return text


def mappings(content: Mapping) -> Iterator[Mapping]:
    """A dictionary and all that are nested in it, the outer first; each once, for loops in it."""
    level, seen = [content], {id(content)}
    for mapping in level:  # grows
        yield mapping
        for value in mapping.values():
            if isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                level.append(value)


def unwrap(content: Mapping, recognise: Callable[[Mapping], bool]) -> dict[str, Tensor]:
    """The first tensors that are recognised, else all of ``content`` itself.

    They may be nested, and lie beside another model's, as Lightning's ``var.*`` beside ``vae.*``.
    """
    for mapping in mappings(content):
        parts = {}
        for name, tensor in tensors_of(mapping).items():
            prefix, rest = parted(name)
            parts.setdefault(prefix, {})[rest] = tensor
        for tensors in parts.values():
            if recognise(tensors):
                return tensors
    return tensors_of(content)


def tensors_of(mapping: Mapping) -> dict[str, Tensor]:
    """The entries that are plain tensors, not expanded from a smaller storage."""
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type in ("cpu", "meta")
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()
    }


def version_of(path: Path) -> list[list[object]]:
    """Name, size and time of every file that is read for this file or folder, as JSON values."""
    beside = ("tokenizer.json", "adapter_config.json")
    files = [path, path.with_suffix(".json"), *map(path.with_name, beside)]
    if os.path.isdir(path):
        files = sorted(path.iterdir())
    stats = [(file.name, os.stat(file)) for file in files if os.path.isfile(file)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn errors about a file's contents into CheckpointErrors that name the file."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(
            f"{quote(path)} lacks the tensor {quote(error.args[0])}; download it again."
        ) from error
    except UserError as error:
        why = str(error).removesuffix(".")
        raise CheckpointError(f"{quote(path)} cannot be read: {why}.") from error
