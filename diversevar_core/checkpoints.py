"""Checkpoint file -> tensors -> which family -> built model.

Files are untrusted: pickles are read with ``weights_only=True``, so nothing in them runs. Tensors
stay memory-mapped where the format allows and go one by one into a model built without memory.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .attention import Attention, sdpa
from .families import infinity
from .families.infinity import Infinity
from .families.var import VAR
from .tokenizers import bsq
from .tokenizers.bsq import BSQ
from .tokenizers.vqvae import VQVAE

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
# buffers of the original modules that carry nothing
BUFFERS = ("zero_k_bias", "lvl_1L", "attn_bias_for_masking", "ema_vocab_hit_SV")


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


def is_var(keys: Iterable[str]) -> bool:
    """Whether these are a VAR transformer's tensors."""
    return {"pos_1LC", "word_embed.weight"} <= set(keys)


def is_infinity(keys: Iterable[str]) -> bool:
    """Whether these are an Infinity transformer's tensors."""
    return {"text_norm.weight", "word_embed.weight"} <= set(keys)


def is_vqvae(keys: Iterable[str]) -> bool:
    """Whether these are VAR's tokenizer's tensors."""
    return "quantize.embedding.weight" in keys and "quantize.quant_resi.qresi_ls.0.weight" in keys


def is_bsq(keys: Iterable[str]) -> bool:
    """Whether these are an Infinity tokenizer's tensors (and not a diffusion model's VAE)."""
    keys = set(keys)
    entry = {"decoder.conv_in.conv.weight", "decoder.conv_in.weight"} & keys
    return bool(entry) and not any(
        key.startswith(("quant_conv.", "quantize.embedding.")) or ".attn_1." in key for key in keys
    )


def is_model(keys: Iterable[str]) -> bool:
    """Whether ``load_model`` takes these tensors."""
    return is_var(keys) or is_infinity(keys)


def is_tokenizer(keys: Iterable[str]) -> bool:
    """Whether ``load_tokenizer`` takes these tensors."""
    return is_vqvae(keys) or is_bsq(keys)


def describe(keys: Iterable[str]) -> str:
    """What these tensors seem to be, for an error message."""
    keys = set(keys)
    if is_model(keys):
        return "a VAR transformer"
    if is_tokenizer(keys):
        return "a VAR tokenizer"
    if any("lora_" in key for key in keys):
        return "a LoRA"
    diffusion = ("model.diffusion_model.", "double_blocks.", "joint_blocks.", "input_blocks.")
    if any(key.startswith(diffusion) or "down_blocks." in key for key in keys):
        return "a diffusion model"
    if any(key.startswith(("encoder.block.", "shared.")) for key in keys):
        return "a text encoder"
    if any(key.startswith(("decoder.conv_in", "first_stage_model.")) for key in keys):
        return "a diffusion model's VAE"
    return f"something else ({len(keys)} tensors, such as {', '.join(sorted(keys)[:2]) or 'none'})"


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
    attention: Attention = sdpa,
) -> VAR | Infinity:
    """Load a VAR or Infinity transformer.

    dtype: None computes in float32 on a CPU and as stored elsewhere. operations, attention: where
    the layer classes and the attention kernel come from. Raises CheckpointError.
    """
    file = read(path, is_model)
    if not is_model(file.tensors):
        raise CheckpointError(
            f"{path} is {describe(file.tensors)}, not a VAR or Infinity transformer; "
            "choose one of those."
        )
    family = VAR if is_var(file.tensors) else Infinity
    with naming(path):
        config = family.read_config(file.tensors, file.facts)
    tensors = file.tensors if family is VAR else infinity.rename(file.tensors)
    dtype = dtype or compute_dtype(tensors["word_embed.weight"], device)
    model = family(config, operations, attention, device="meta", dtype=dtype)
    unknown = sorted(set(tensors) - set(model.state_dict()))
    unknown = [key for key in unknown if not key.endswith(BUFFERS)]
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that no {family.__name__} release has, such as "
            f"{unknown[0]}; this variant is not supported."
        )
    fill(model, tensors, device, path)
    return model


def load_tokenizer(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
) -> VQVAE | BSQ:
    """Load VAR's or Infinity's tokenizer, as ``load_model`` does. Raises CheckpointError."""
    file = read(path, is_tokenizer)
    if not is_tokenizer(file.tensors):
        raise CheckpointError(
            f"{path} is {describe(file.tensors)}, not VAR's or Infinity's tokenizer; "
            "choose one of those."
        )
    family = VQVAE if is_vqvae(file.tensors) else BSQ
    tensors = file.tensors if family is VQVAE else bsq.rename(file.tensors)
    with naming(path):
        config = family.read_config(tensors)
    dtype = dtype or compute_dtype(tensors["decoder.conv_in.weight"], device)
    tokenizer = family(config, operations, device="meta", dtype=dtype)
    fill(tokenizer, tensors, device, path)
    return tokenizer


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


def compute_dtype(stored: Tensor, device: torch.device | str) -> torch.dtype:
    """float32 on a CPU, where half precision is slow; else as stored."""
    return torch.float32 if torch.device(device).type == "cpu" else stored.dtype


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], device: torch.device | str, path: str | Path
) -> None:
    """Put the tensors into a module built on the meta device, each in the place's own dtype."""
    places = module.state_dict()
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(places)} tensors, such as {missing[0]}; "
            "download it again."
        )
    placed = {}
    for name, place in places.items():
        tensor = tensors[name]
        if tensor.numel() != place.numel():
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)} where {list(place.shape)} is "
                "needed; this variant is not supported."
            )
        placed[name] = tensor.to(device, place.dtype).reshape(place.shape)
    module.load_state_dict(placed, assign=True)
    module.requires_grad_(False).eval()
