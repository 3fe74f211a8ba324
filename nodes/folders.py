"""Find the user's model files that this pack can load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import folder_paths

from ..diversevar_core.checkpoints import included
from ..diversevar_core.checkpoints.files import names_in, version_of
from ..diversevar_core.checkpoints.loading import is_model, is_vae
from ..diversevar_core.errors import UserError, quote
from ..diversevar_core.presets import calibration_path
from ..diversevar_core.text.encoder import is_t5

Accepts = Callable[[Iterable[str]], bool]  # tensor names -> whether a file is of a kind

OWN = "diversevar"  # models/diversevar, for users who keep these models together


@dataclass(frozen=True)
class Kind:
    """One kind of file: its ComfyUI folders, how it is recognised, and the included files."""

    folders: tuple[str, ...]
    accepts: Accepts
    included: dict[str, Path]


MODELS = Kind(
    ("diffusion_models", "checkpoints", OWN), is_model, included.all_of("transformer.safetensors")
)
VAES = Kind(("vae", "checkpoints", OWN), is_vae, included.all_of("vae.safetensors"))
TEXT_ENCODERS = Kind(("text_encoders", OWN), is_t5, included.all_of("text_encoder.safetensors"))

# path -> its version and the kinds that it can be of, to read each file once
verdicts: dict[Path, tuple[list, frozenset[Accepts] | None]] = {}


def register() -> None:
    """Add models/diversevar to ComfyUI's folders, with the suffixes that checkpoints have."""
    folder_paths.add_model_folder_path(OWN, str(Path(folder_paths.models_dir) / OWN))
    paths, _ = folder_paths.folder_names_and_paths[OWN]
    folder_paths.folder_names_and_paths[OWN] = (paths, folder_paths.supported_pt_extensions)


def choices(kind: Kind) -> list[str]:
    """The names to list: included models, then the user's subfolders and files of this kind."""
    names = dict.fromkeys(kind.included)
    for folder in kind.folders:
        for name in listed(folder):
            if name not in names and any(fits(kind, path) for path in paths(folder, name)):
                names[name] = None
    return [*names]


def path_of(kind: Kind, name: str) -> Path:
    """The path of a name from ``choices``; UserError if it is missing."""
    if name in kind.included:
        return kind.included[name]
    for folder in kind.folders:
        for path in find(folder, name):
            if fits(kind, path):
                return path
    raise UserError(
        f"There is no {quote(name)} in models/{kind.folders[0]}; choose another, or download it "
        "(links in the README) and refresh."
    )


model_path, vae_path, text_encoder_path = (
    partial(path_of, kind) for kind in (MODELS, VAES, TEXT_ENCODERS)
)


def lora_path(name: str) -> Path:
    """The path of a LoRA from ComfyUI's list; UserError if it is missing."""
    for path in find("loras", name):
        return path
    raise UserError(f"There is no {quote(name)} in models/loras; choose another.")


def check(path_of: Callable[[str], Path], name: str | None) -> bool | str:
    """For ``validate_inputs``: True, or why the name is not valid. A linked name is None here."""
    try:
        return name is None or bool(path_of(name))
    except UserError as error:
        return str(error)


def version(path_of: Callable[[str], Path], name: str | None) -> list[list[object]] | None:
    """For ``fingerprint_inputs``: a value that changes with the file; None for a linked name."""
    return None if name is None else version_of(path_of(name))


def calibrations() -> list[list[object]]:
    """Path and time of every saved calibration, so that samplers with that preset run again."""
    roots = [root for folder in MODELS.folders for root in folder_paths.get_folder_paths(folder)]
    pattern = calibration_path(Path("*")).name
    files = {file for root in (included.FOLDER, *roots) for file in Path(root).rglob(pattern)}
    return sorted([str(file), file.stat().st_mtime_ns] for file in files)


def listed(folder: str) -> list[str]:
    """The names of a folder's subfolders that have files, then of its files."""
    files = folder_paths.get_filename_list(folder)
    parents = {os.path.dirname(name).replace(os.sep, "/") for name in files} - {""}
    return sorted(parents) + files


def find(folder: str, name: str) -> Iterator[Path]:
    """The paths of a listed name, which may have another system's separators (\\ or /)."""
    names = listed(folder)
    if name not in names:
        alike = {own.replace("\\", "/"): own for own in names}
        name = alike.get(str(name).replace("\\", "/"))
    return iter(()) if name is None else paths(folder, name)


def paths(folder: str, name: str) -> Iterator[Path]:
    """The paths that a name has, in all of a folder's directories."""
    for root in folder_paths.get_folder_paths(folder):
        if os.path.exists(path := os.path.join(root, name)):
            yield Path(path)


def fits(kind: Kind, path: Path) -> bool:
    """Whether a path can be of this kind; if its names cannot be read, a file can, a folder not."""
    try:
        version = version_of(path)  # of a folder's files too, which may still be downloading
    except OSError:  # missing, or permission denied
        return False
    before, kinds = verdicts.get(path, (None, None))
    if before != version:
        kinds = verdict(path)
        verdicts[path] = version, kinds
    return os.path.isfile(path) if kinds is None else kind.accepts in kinds


def verdict(path: Path) -> frozenset[Accepts] | None:
    """The kinds that a file or folder can be of, by tensor names; None if they are not readable."""
    names = names_in(path)
    if names is None:
        return None
    kinds = (MODELS, VAES, TEXT_ENCODERS)
    return frozenset(kind.accepts for kind in kinds if kind.accepts(names))
