"""Where the user's models lie, and which of them are ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import folder_paths

from ..diversevar_core.checkpoints import included
from ..diversevar_core.checkpoints.files import index_of, names_in, version_of
from ..diversevar_core.checkpoints.loading import is_model, is_tokenizer
from ..diversevar_core.quote import quote
from ..diversevar_core.text.encoder import is_t5

Accepts = Callable[[Iterable[str]], bool]  # whether tensors of these names are what is wanted

OWN = "diversevar"  # models/diversevar, for who likes to keep them together


@dataclass(frozen=True)
class Kind:
    """The ComfyUI folders of one kind of file, what it must hold, and what is included."""

    folders: tuple[str, ...]
    accepts: Accepts
    included: dict[str, Path]


MODELS = Kind(
    ("diffusion_models", "checkpoints", OWN), is_model, included.all_of("transformer.safetensors")
)
TOKENIZERS = Kind(
    ("vae", "checkpoints", OWN), is_tokenizer, included.all_of("tokenizer.safetensors")
)
TEXT_ENCODERS = Kind(("text_encoders", OWN), is_t5, included.all_of("text_encoder.safetensors"))

# of files that were looked into: inode, size, time, and the kinds that they can be of
verdicts: dict[Path, tuple[tuple[int, ...], frozenset[Accepts] | None]] = {}


def register() -> None:
    """Add our own folder to the host's, beside any that the user's extra paths name."""
    folder_paths.add_model_folder_path(OWN, str(Path(folder_paths.models_dir) / OWN))
    paths, _ = folder_paths.folder_names_and_paths[OWN]
    folder_paths.folder_names_and_paths[OWN] = (paths, folder_paths.supported_pt_extensions)


def choices(kind: Kind) -> list[str]:
    """What is included, then what the user has: subfolders that are one model, and files."""
    found = dict.fromkeys(kind.included)
    for folder in kind.folders:
        for name in listed(folder):
            if name not in found and any(fits(kind, path) for path in places(folder, name)):
                found[name] = None
    return [*found]


def path_of(kind: Kind, name: str) -> Path:
    """Where a choice lies on disk; of the lists' names only. ValueError where it is gone."""
    if name in kind.included:
        return kind.included[name]
    for folder in kind.folders:
        for path in find(folder, name):
            if fits(kind, path):
                return path
    raise ValueError(
        f"There is no {quote(name)} in models/{kind.folders[0]} any more; refresh and choose again."
    )


model_path, tokenizer_path, text_encoder_path = (
    partial(path_of, kind) for kind in (MODELS, TOKENIZERS, TEXT_ENCODERS)
)


def lora_path(name: str) -> Path:
    """Where a LoRA of the host's list lies. ValueError where it is not there."""
    for path in find("loras", name):
        return path
    raise ValueError(f"There is no {quote(name)} in models/loras any more; choose again.")


def check(path_of: Callable[[str], Path], name: str | None) -> bool | str:
    """Whether a choice can be taken, or why not; one that comes by a link is not known yet."""
    try:
        return name is None or bool(path_of(name))
    except ValueError as error:
        return str(error)


def version(path_of: Callable[[str], Path], name: str | None) -> list[list[object]] | None:
    """What changes as a choice's files do, None where it comes by a link."""
    return None if name is None else version_of(path_of(name))


def listed(folder: str) -> list[str]:
    """The names of a folder's subfolders that hold files, then of its files."""
    files = folder_paths.get_filename_list(folder)
    parents = {os.path.dirname(name).replace(os.sep, "/") for name in files} - {""}
    return sorted(parents) + files


def find(folder: str, name: str) -> Iterator[Path]:
    """Where a listed name exists, also with the separators of another system (Windows has \\)."""
    names = listed(folder)
    if name not in names:
        alike = {own.replace("\\", "/"): own for own in names}
        name = alike.get(str(name).replace("\\", "/"))
    return iter(()) if name is None else places(folder, name)


def places(folder: str, name: str) -> Iterator[Path]:
    """Where a name exists in any of a folder's paths."""
    for root in folder_paths.get_folder_paths(folder):
        if os.path.exists(path := os.path.join(root, name)):
            yield Path(path)


def fits(kind: Kind, path: Path) -> bool:
    """Whether a file or folder can be of this kind; in doubt a file can, and a folder cannot."""
    try:
        index = index_of(path) if os.path.isdir(path) else None
        found = (index or path).stat()
    except OSError:  # gone, or not ours to read
        return False
    version = (found.st_ino, found.st_size, found.st_mtime_ns)
    before, kinds = verdicts.get(path, (None, None))
    if before != version:
        kinds = verdict(path)
        verdicts[path] = version, kinds
    return os.path.isfile(path) if kinds is None else kind.accepts in kinds


def verdict(path: Path) -> frozenset[Accepts] | None:
    """The kinds that a file or folder can be of, by its tensors' names; None in doubt."""
    names = names_in(path)
    if names is None:
        return None
    kinds = (MODELS, TOKENIZERS, TEXT_ENCODERS)
    return frozenset(kind.accepts for kind in kinds if kind.accepts(names))
