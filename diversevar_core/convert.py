"""Any official checkpoint -> one safetensors file, with all that loading needs in its header.

The source is memory-mapped, and the file is written tensor by tensor, so that one tensor at a time
is in memory. (Pickles from before torch 1.6 cannot be mapped and are read whole.)

``dtype`` applies to the weights that the models use in half precision anyway: matrices and
convolutions. Vectors (biases, norms, gains) and the layers that compute in float32 (``EXACT``) keep
their type. float8 has 3 bits of mantissa and no scale here, so only the matrices of the blocks,
nearly all of the bytes, become float8; embeddings and all other matrices become bfloat16. A
VAE has no such blocks and becomes bfloat16.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .checkpoints.files import Checkpoint, CheckpointError, parse, read
from .checkpoints.loading import BUFFERS, describe, is_model, is_quantized, is_vae
from .errors import quote
from .text.encoder import is_t5, read_tokenizer, rename, tokenizer_path
from .vae.bsq import BSQ

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
NAMES = {  # of types in safetensors headers
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
EXACT = re.compile(
    r"(shared_ada_lin|head_nm|head|quantize)\."  # VAR's and Infinity's float32 layers, the codebook
    r"|.*\.(ada_gss|relative_attention_bias\.weight)$"  # stacked vectors
)
BLOCK = re.compile(r"(block_chunks|blocks|encoder\.block)\.")


def convert(source: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a transformer, VAE or text encoder as one safetensors file.

    source: a file or folder that ``load_model``, ``load_vae`` or ``load_text_encoder`` reads;
    of a whole T5, only the encoder is written. dtype: one of ``DTYPES`` (see above), None to keep
    the stored types. The header gets the facts from the source's header, sidecar and name, and a
    text encoder's tokenizer.json. Raises CheckpointError if the source cannot be converted, or
    ``out`` is there already or cannot be written; no half file stays.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise CheckpointError(f"There is a file {quote(out)} already; choose another name.")
    checkpoint = read_whole(Path(source))
    types = {name: target(name, t, dtype) for name, t in checkpoint.tensors.items()}
    draft = out.with_name(f".{uuid.uuid4().hex}.part")  # so that no half file is taken for a whole
    try:
        try:
            with draft.open("xb") as file:
                write(file, checkpoint, types)
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def unwritable(out: Path, error: OSError | ValueError) -> CheckpointError:
    """The error to raise for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{quote(out)} cannot be written: {reason}.")


def read_whole(source: Path) -> Checkpoint:
    """Read a source's facts, and its tensors without those that no loader uses."""
    for recognise in (is_model, is_vae, is_t5):  # a trainer's file has its VAE too
        file = read(source, recognise)
        if recognise(file.tensors):
            break
    else:
        raise CheckpointError(
            f"{quote(source)} is {describe(file.tensors)}; what can be converted is a VAR or "
            "Infinity transformer, its VAE, or a T5 text encoder."
        )
    if is_quantized(file.tensors):
        raise CheckpointError(f"{quote(source)} is quantized already; convert the original file.")
    facts, vocabulary = file.facts, tokenizer_path(source)
    if is_t5(file.tensors):
        tensors = rename(file.tensors)
        kept = ("tokenizer.json", "prompts", "phrases")
        facts = {name: facts[name] for name in kept if name in facts}
        if "tokenizer.json" not in facts and vocabulary.is_file():
            facts["tokenizer.json"] = read_tokenizer(vocabulary)
    else:
        wanted = ("encoder.", "decoder.") if BSQ.recognises(file.tensors) else ""
        tensors = {
            name: tensor
            for name, tensor in file.tensors.items()
            if name.startswith(wanted) and not name.endswith(BUFFERS)
        }
    return Checkpoint(tensors, facts)


def target(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type to write a tensor in."""
    overflows = dtype == torch.float16 and name.endswith("DenseReluDense.wo.weight")
    vector = tensor.squeeze().ndim < 2
    if dtype is None or vector or overflows or EXACT.match(name) or not tensor.is_floating_point():
        return tensor.dtype
    if dtype.itemsize == 1 and not (BLOCK.match(name) and tensor.ndim == 2):
        return torch.bfloat16
    return dtype


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor. Raises CheckpointError if a value is out of the type's range."""
    if tensor.dtype == dtype:
        return tensor.detach().contiguous()
    limit = torch.finfo(dtype).max
    if tensor.numel() and limit < torch.finfo(tensor.dtype).max:
        low, high = tensor.detach().aminmax()
        if max(-low, high) > limit:
            raise CheckpointError(
                f"{quote(name)} has values beyond {limit:g}, the largest of {dtype}; "
                "use --dtype bf16."
            )
    return tensor.detach().to(dtype).contiguous()


def write(file: BinaryIO, checkpoint: Checkpoint, types: Mapping[str, torch.dtype]) -> None:
    """Write a safetensors file: 8 bytes with the header's length, header, tensors.

    github.com/huggingface/safetensors, "Format". The largest types come first, so that all tensors
    are aligned.
    """
    tensors, end = checkpoint.tensors, 0
    order = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    header = {"__metadata__": header_facts(checkpoint)}
    for name in order:
        start, end = end, end + tensors[name].numel() * types[name].itemsize
        header[name] = {
            "dtype": NAMES[types[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(cast(name, tensors[name], types[name]).reshape(-1).view(torch.uint8).numpy())


def header_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """A checkpoint's facts as header texts, from which ``parse`` reads the same facts."""
    facts = {"format": "pt"} | checkpoint.facts
    return {
        name: fact
        if isinstance(fact, str) and parse(name, fact) == fact
        else json.dumps(fact, default=str)
        for name, fact in facts.items()
    }
