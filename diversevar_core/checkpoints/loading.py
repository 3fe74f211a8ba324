"""Checkpoint -> the family that it belongs to -> a built model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import quote
from ..models import FAMILIES, layers
from ..models.attention import Attention, sdpa
from ..models.family import Family
from ..vae import VAES
from ..vae.vae import VAE
from .files import Checkpoint, CheckpointError, load_file, naming, read

# buffers of the original modules that are not needed
BUFFERS = ("zero_k_bias", "lvl_1L", "attn_bias_for_masking", "ema_vocab_hit_SV")
SCALES = (".comfy_quant", ".weight_scale", ".scale_weight", "scaled_fp8")


def is_model(keys: Collection[str]) -> bool:
    """Whether these tensors are a transformer's that ``load_model`` can load."""
    return any(family.recognises(keys) for family in FAMILIES)


def is_vae(keys: Collection[str]) -> bool:
    """Whether these tensors are a VAE's that ``load_vae`` can load."""
    return any(kind.recognises(keys) for kind in VAES)


def describe(keys: Collection[str]) -> str:
    """What kind of model these tensors seem to be, for an error message."""
    if is_model(keys):
        return "a VAR transformer"
    if is_vae(keys):
        return "a VAR VAE"
    if any("flat_param" in key for key in keys):
        return "FSDP's flat parameters (save the full state dict instead)"
    if any("lora_" in key for key in keys):
        return "a LoRA"
    diffusion = ("model.diffusion_model.", "double_blocks.", "joint_blocks.", "input_blocks.")
    if any(key.startswith(diffusion) or "down_blocks." in key for key in keys):
        return "a diffusion model"
    if any(key.startswith(("encoder.block.", "shared.")) for key in keys):
        return "a text encoder"
    if any(key.startswith(("decoder.conv_in", "first_stage_model.")) for key in keys):
        return "a diffusion model's VAE"
    some = ", ".join(map(quote, sorted(keys)[:2]))
    return f"something else ({len(keys)} tensors, such as {some or 'none'})"


def is_quantized(keys: Collection[str]) -> bool:
    """Whether some of these tensors are the scales of quantized weights."""
    return any(key.endswith(SCALES) for key in keys)


def read_kind(
    path: str | Path,
    recognise: Callable[[Collection[str]], bool],
    wanted: str,
    load: Callable[[Path], Mapping] = load_file,
) -> Checkpoint:
    """``read``; CheckpointError if the file is of another kind than the ``wanted``."""
    file = read(path, recognise, load)
    if not recognise(file.tensors):
        raise CheckpointError(f"{quote(path)} is {describe(file.tensors)}, not {wanted}.")
    return file


def read_model(
    path: str | Path, task: str | None = None, load: Callable[[Path], Mapping] = load_file
) -> Checkpoint:
    """Read a VAR or Infinity transformer's file. Raises CheckpointError.

    task: generate or edit, in place of what the file says. load: as in ``read``.
    """
    file = read_kind(path, is_model, "a VAR or Infinity transformer; choose one of those", load)
    return Checkpoint(file.tensors, file.facts | ({"task": task} if task else {}))


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attention: Attention = sdpa,
    task: str | None = None,
) -> Family:
    """Load a VAR or Infinity transformer: ``read_model``, then ``build_model``."""
    return build_model(read_model(path, task), path, device, dtype, attention=attention)


def build_model(
    file: Checkpoint,
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
    attention: Attention = sdpa,
) -> Family:
    """Build the transformer that a file holds.

    dtype: of the layers' computation; None is float32 on a CPU and the stored type elsewhere.
    operations: a module with the layer classes. With ``torch.nn``, weights are converted to
    ``dtype``. Any other classes must cast weights when they compute: weights then stay as stored,
    and quantized weights and their scales are passed to the classes. attention: the kernel.
    Raises CheckpointError, which names ``path``.
    """
    family = next(family for family in FAMILIES if family.recognises(file.tensors))
    with naming(path):
        config = family.read_config(file.tensors, file.facts)
    tensors = family.rename(file.tensors)
    dtype = dtype or compute_dtype(tensors, device)
    build = partial(family, config, attention=attention, dtype=dtype)
    return filled(build, operations, tensors, device, path)


def load_vae(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: ModuleType = nn,
    load: Callable[[Path], Mapping] = load_file,
) -> VAE:
    """Load VAR's or Infinity's VAE, as ``build_model`` does. Raises CheckpointError."""
    file = read_kind(path, is_vae, "VAR's or Infinity's VAE; choose one of those", load)
    kind = next(kind for kind in VAES if kind.recognises(file.tensors))
    tensors = kind.rename(file.tensors)
    with naming(path):
        config = kind.read_config(tensors)
    dtype = dtype or compute_dtype(tensors, device)
    return filled(partial(kind, config, dtype=dtype), operations, tensors, device, path)


def compute_dtype(tensors: Mapping[str, Tensor], device: torch.device | str) -> torch.dtype:
    """float32 on a CPU, where half precision is slow; elsewhere the type of most weights.

    bfloat16 where that is float8, which layers cannot compute in.
    """
    if torch.device(device).type == "cpu":
        return torch.float32
    weights = Counter()
    for tensor in tensors.values():
        weights[tensor.dtype] += tensor.numel()
    ((stored, _),) = weights.most_common(1)
    return torch.bfloat16 if stored.itemsize == 1 else stored


def filled(
    build: Callable[..., nn.Module],
    operations: ModuleType,
    tensors: Mapping[str, Tensor],
    device: torch.device | str,
    path: str | Path,
) -> nn.Module:
    """Build a module and load tensors into it.

    build: takes ``operations`` and ``device``, returns the module without weights. Raises
    CheckpointError.
    """
    if operations is nn and is_quantized(tensors):
        raise CheckpointError(
            f"{quote(path)} is quantized with scales, which only ComfyUI can read; choose a file "
            "in float16, bfloat16 or float32."
        )
    with naming(path):
        module = build(operations=layers, device="meta")
    expected = module.state_dict()
    check_tensors(tensors, expected, path)
    types = {}  # as stored
    if operations is nn:
        types = {name: tensor.dtype for name, tensor in expected.items()}
    else:
        # layers for quantized weights move them to the device that the layers were made on
        module = build(operations=operations, device=device if is_quantized(tensors) else "meta")
    tensors = {
        name: tensor.to(device, types.get(name, tensor.dtype)) for name, tensor in tensors.items()
    }
    missing, unknown = module.load_state_dict(tensors, strict=False, assign=True)
    if missing:  # what quantized layers need in addition, such as a scale
        raise lacking(missing, expected, path)
    unknown = sorted(key for key in unknown if not key.endswith(BUFFERS))
    if unknown:
        raise CheckpointError(
            f"{quote(path)} has {len(unknown)} tensors that no {type(module).__name__} release "
            f"has, such as {quote(unknown[0])}; this variant is not supported."
        )
    return module.requires_grad_(False).eval()


def lacking(
    missing: Collection[str], expected: Collection[str], path: str | Path
) -> CheckpointError:
    """The error to raise for missing tensors."""
    return CheckpointError(
        f"{quote(path)} lacks {len(missing)} of {len(expected)} tensors, such as "
        f"{quote(min(missing))}; download it again."
    )


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raise CheckpointError if an expected tensor is missing or has another shape.

    ComfyUI's quantized layers only warn of a missing weight.
    """
    if missing := expected.keys() - tensors.keys():
        raise lacking(missing, expected, path)
    for name, tensor in expected.items():
        has, needs = tensors[name].shape, tensor.shape
        if name.removesuffix("weight") + "comfy_quant" in tensors:
            has, needs = has[:1], needs[:1]  # a quantized row's length depends on its packing
        if has != needs:
            raise CheckpointError(
                f"{quote(path)}: {quote(name)} has shape {list(has)} where {list(needs)} is "
                "needed; this variant is not supported."
            )
