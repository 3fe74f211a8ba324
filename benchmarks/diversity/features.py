"""Images -> features and scores, by networks whose files the user provides.

An encoder gives features (N, C) and scores (N,) of N images. Every score becomes a column of the
report, so a new column needs only another encoder.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from diversevar_core.diversity import pixel_features

from .inception import Inception, prepare

Encode = Callable[[Sequence[Image.Image], Sequence[str]], Mapping[str, Tensor]]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
EDGES = 1 << 20  # bytes at the beginning and the end of a file that ``digest`` reads


@dataclass(frozen=True)
class Encoder:
    """name; digest of its file; load: read the file, and return what encodes pictures."""

    name: str
    digest: str
    load: Callable[[], Encode]


def digest(path: Path) -> str:
    """Eight hexadecimal digits that identify a file, or a folder's files.

    Only the size and both ends of a file count. Raises ValueError where it is missing.
    """
    if not path.exists():
        raise ValueError(f"There is no {path}; check the name and the folder.")
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            found.update(f"{file.name if path.is_dir() else ''} {file.stat().st_size}".encode())
            found.update(opened.read(EDGES))
            opened.seek(max(file.stat().st_size - EDGES, 0))
            found.update(opened.read())
    return found.hexdigest()[:8]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file or a pickled state dict, without running code in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a file of tensors only (TorchScript files are programs and are not "
            "run); use the plain state dict."
        ) from error
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def pixels() -> Encoder:
    """Small copies of the pictures as features, without any network."""

    def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        found = (np.array(picture.convert("RGB"), np.float32) / 255 for picture in pictures)
        return {
            "pixels": torch.cat(
                [pixel_features(torch.from_numpy(p).permute(2, 0, 1)[None]) for p in found]
            )
        }

    return Encoder("pixels", "", lambda: encode)


def inception(path: Path, device: str) -> Encoder:
    """FID's Inception from ``pt_inception-2015-12-05-6726825d.pth``."""

    def load() -> Encode:
        tensors = read_tensors(path)
        if "Mixed_7c.branch_pool.conv.weight" not in tensors:
            raise ValueError(
                f"{path} is not FID's Inception; take pt_inception-2015-12-05-6726825d.pth."
            )
        network = Inception({name: tensor.to(device) for name, tensor in tensors.items()})

        def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            prepared = torch.stack([prepare(picture) for picture in pictures])
            return {"inception": network(prepared.to(device)).cpu()}

        return encode

    return Encoder("inception", digest(path), load)


def clip(folder: Path, device: str) -> Encoder:
    """CLIP from a transformers folder: unit features, and the cosine of picture and prompt.

    Radford et al., arXiv 2103.00020; Hessel et al., arXiv 2104.08718, without the factor of 2.5.
    """

    def load() -> Encode:
        from transformers import AutoTokenizer, CLIPModel  # takes seconds

        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is not a CLIP folder of the transformers library ({error})."
            ) from error
        side = model.config.vision_config.image_size
        length = model.config.text_config.max_position_embeddings

        @torch.no_grad()
        def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            words = tokenizer(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            found = model(
                pixel_values=torch.stack([normalized(p, side) for p in pictures]).to(device),
                input_ids=words.input_ids.to(device),
                attention_mask=words.attention_mask.to(device),
            )
            score = (found.image_embeds * found.text_embeds).sum(dim=1)
            return {"clip": found.image_embeds.cpu(), "CLIP score": score.cpu()}

        return encode

    return Encoder("clip", digest(folder), load)


def image_reward(folder: Path, device: str) -> Encoder:
    """ImageReward from a folder with ``ImageReward.pt`` and bert-base-uncased's tokenizer.json."""
    weights, words = folder / "ImageReward.pt", folder / "tokenizer.json"

    def load() -> Encode:
        from .image_reward import build  # imports transformers, which takes seconds

        try:
            network = build(read_tensors(weights), Tokenizer.from_file(str(words)), device)
        except KeyError as error:
            raise ValueError(f"{weights} lacks the tensor {error.args[0]}.") from error

        def encode(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
            prepared = torch.stack([normalized(p, network.side) for p in pictures])
            return {"ImageReward": network(prepared.to(device), prompts).cpu()}

        return encode

    return Encoder("image-reward", digest(weights) + digest(words), load)


def normalized(picture: Image.Image, side: int) -> Tensor:
    """The central square (3, side, side) of the picture, resized and normalized as CLIP does."""
    width, height = (side * edge // min(picture.size) for edge in picture.size)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    square = np.array(resized.crop((left, top, left + side, top + side)), np.float32) / 255
    return torch.from_numpy((square - CLIP_MEAN) / CLIP_DEVIATION).permute(2, 0, 1).float()
