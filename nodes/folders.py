"""Where the user's models lie, and which of them are ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..diversevar_core import included
from ..diversevar_core.checkpoints import is_model, is_tokenizer
from ..diversevar_core.files import index_of, names_in
from ..diversevar_core.text import is_t5

OWN = "diversevar"  # models/diversevar, for who likes to keep them together


@dataclass(frozen=True)
class Kind:
    """The ComfyUI folders of one kind of file, what it must hold, and what is included."""

    folders: tuple[str, ...]
    accepts: Callable[[Iterable[str]], bool]
    included: dict[str, Path]


MODELS = Kind(
    ("diffusion_models", "checkpoints", OWN), is_model, included.all_of("transformer.safetensors")
)
TOKENIZERS = Kind(
    ("vae", "checkpoints", OWN), is_tokenizer, included.all_of("tokenizer.safetensors")
)
TEXT_ENCODERS = Kind(("text_encoders", OWN), is_t5, included.all_of("text_encoder.safetensors"))


def register() -> None:
    """Add our own folder to the host's, beside any that the user's extra paths name."""
    folder_paths.add_model_folder_path(OWN, str(Path(folder_paths.models_dir) / OWN))
    paths, _ = folder_paths.folder_names_and_paths[OWN]
    folder_paths.folder_names_and_paths[OWN] = (paths, folder_paths.supported_pt_extensions)


def choices(kind: Kind) -> list[str]:
    """What is included, then what the user has: subfolders that are one model, and files."""
    found = [*kind.included]
    for folder in kind.folders:
        files = folder_paths.get_filename_list(folder)
        parents = sorted({Path(name).parent.as_posix() for name in files} - {"."})
        for name in parents + files:
            if name not in found and any(fits(kind, path) for path in places(folder, name)):
                found.append(name)
    return found


def path_of(kind: Kind, name: str) -> Path:
    """Where a choice lies on disk. ValueError where it is gone."""
    if name in kind.included:
        return kind.included[name]
    for folder in kind.folders:
        for path in places(folder, name):
            if fits(kind, path):
                return path
    raise ValueError(
        f"There is no {name} in models/{kind.folders[0]} any more; refresh and choose again."
    )


def places(folder: str, name: str) -> Iterator[Path]:
    """Where a name exists in any of a folder's paths."""
    for root in folder_paths.get_folder_paths(folder):
        if os.path.exists(Path(root) / name):  # false, where Path's own raises
            yield Path(root) / name


def fits(kind: Kind, path: Path) -> bool:
    """Whether a file or folder can be of this kind; in doubt a file can, and a folder cannot."""
    try:
        index = index_of(path) if os.path.isdir(path) else None
        found = (index or path).stat()
    except OSError:  # gone, or not ours to read
        return False
    names = known_names(path, (found.st_ino, found.st_size, found.st_mtime_ns))
    return os.path.isfile(path) if names is None else kind.accepts(names)


@lru_cache(maxsize=4096)
def known_names(path: Path, version: tuple[int, ...]) -> frozenset[str] | None:
    """``names_in`` a file, read once for each version of it."""
    return names_in(path)
