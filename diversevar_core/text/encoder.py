"""Prompt -> text features, with a T5 encoder (flan-T5-xl for Infinity's releases)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..checkpoints.files import BoundedFile, CheckpointError, load_file, naming, reading
from ..checkpoints.loading import compute_dtype, filled, read_kind
from ..errors import UnknownPromptError, UserError, quote
from .reading import Known, known_phrases, read
from .t5 import T5Config, T5Encoder, read_config

MAX_TOKENS = 512  # what Infinity was trained with, end token included
FIRST = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def root_of(keys: Iterable[str]) -> str | None:
    """The prefix of a T5 encoder's ``block.0`` in these keys, None if there is no T5 encoder.

    It is ``encoder.`` in Hugging Face's files; empty, or ``text_encoder.``, in others. T5 decoders
    do not count, nor UMT5, in which every block has position biases.
    """
    keys = set(keys)
    roots = {key.removesuffix(FIRST) for key in keys if key.endswith(FIRST)}
    for root in sorted(roots):
        second = root + FIRST.replace("0", "1", 1)
        if not root.endswith("decoder.") and second not in keys and embedding_of(keys, root):
            return root
    return None


def outer_of(root: str) -> str:
    """The prefix of the whole model's keys: the root without Hugging Face's ``encoder.``."""
    return root.removesuffix("encoder.") if f".{root}".endswith(".encoder.") else root


def embedding_of(keys: Iterable[str], root: str) -> str | None:
    """The name of the token embedding of the encoder with this root, None if it is missing."""
    prefixes = (outer_of(root), root)
    names = [f"{start}{name}.weight" for name in ("shared", "embed_tokens") for start in prefixes]
    return next((name for name in names if name in keys), None)


def is_t5(keys: Iterable[str]) -> bool:
    """Whether a T5 encoder's tensors are among these."""
    return root_of(keys) is not None


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A T5 encoder's tensors under Hugging Face's names; all others are dropped.

    Scales of quantized weights are renamed with their weights.
    """
    root = root_of(tensors)
    embedding = embedding_of(tensors, root)
    starts = {
        f"{root}block.": "encoder.block.",
        f"{root}final_layer_norm.": "encoder.final_layer_norm.",
        embedding.removesuffix("weight"): "shared.",
        outer_of(root) + "scaled_fp8": "scaled_fp8",
    }
    return {
        to + key.removeprefix(start): tensor
        for key, tensor in tensors.items()
        for start, to in starts.items()
        if key.startswith(start)
    }


def check_characters(name: str, text: str) -> None:
    """Raise UserError if a text has a lone surrogate, which cannot be encoded as UTF-8."""
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if half:
        raise UserError(f"{name} has half a character, {quote(half)}; type it again.")


def check_length(tokens: int) -> None:
    """Raise UserError if a prompt has more tokens than the model reads."""
    if tokens > MAX_TOKENS:
        raise UserError(
            f"The prompt is {tokens} tokens long and the model reads at most {MAX_TOKENS}; "
            "shorten it."
        )


@dataclass(frozen=True)
class T5File:
    """The contents of a T5 encoder's file or folder."""

    config: T5Config
    tensors: dict[str, Tensor]
    vocabulary: Path  # its tokenizer.json, used if ``facts`` has none
    facts: dict[str, object]  # from the file's header and sidecar

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without padding and truncation.

        Raises CheckpointError if it is not valid, or has more words than the embedding.
        """
        text = self.facts.get("tokenizer.json") or read_tokenizer(self.vocabulary)
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # what the library raises has no narrower type
            raise CheckpointError(
                f"The tokenizer.json for {quote(self.vocabulary)} is not valid; get it again."
            ) from error
        if tokenizer.get_vocab_size() > self.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer.json for {quote(self.vocabulary)} has {tokenizer.get_vocab_size()} "
                f"words and the text encoder's embedding {self.config.vocab_size}; put the text "
                "encoder's own tokenizer.json next to it."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def known(self) -> Known | None:
        """What a small model knows, None if the file lists no prompts."""
        prompts, phrases = self.facts.get("prompts"), self.facts.get("phrases", {})
        if not isinstance(prompts, list) or not isinstance(phrases, dict):
            return None
        texts = all(isinstance(text, str) for text in (*prompts, *phrases.values()))
        return known_phrases(prompts, phrases) if prompts and texts else None


def read_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json. Raises CheckpointError."""
    with reading(path), BoundedFile(path) as opened:
        return opened.read().decode()


def tokenizer_path(path: Path) -> Path:
    """Where a text encoder's file or folder has its tokenizer.json."""
    return (path if path.is_dir() else path.parent) / "tokenizer.json"


def read_t5(
    path: str | Path, vocabulary: Path | None = None, load: Callable[[Path], Mapping] = load_file
) -> T5File:
    """Read a T5 encoder from a Hugging Face folder or a single file.

    Its tokenizer.json is that in the file's header (as ``convert`` writes it), else that next to
    the file, else ``vocabulary``. load: as in ``read``. Raises CheckpointError.
    """
    path = Path(path)
    file = read_kind(path, is_t5, "a T5 text encoder; choose flan-t5-xl's", load)
    expected = tokenizer_path(path)
    if expected.is_file():
        vocabulary = expected
    if vocabulary is None and "tokenizer.json" not in file.facts:
        raise CheckpointError(
            f"There is no {quote(expected)}; put the text encoder's tokenizer.json there."
        )
    tensors = rename(file.tensors)
    with naming(path):
        return T5File(read_config(tensors), tensors, vocabulary or path, file.facts)


class TextEncoder:
    """A T5 encoder and its tokenizer; call it with prompts.

    known: what a small model knows, onto which prompts are read; None: they are encoded as typed.
    """

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], tokenizer: Tokenizer, known: Known | None = None
    ):
        self.encoder, self.tokenizer, self.known = encoder, tokenizer, known

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features (length, Ct) float32 of each prompt, end token included.

        Raises UserError if a prompt is empty, longer than ``MAX_TOKENS``, or all new to the model.
        """
        features = []
        for text in prompts:
            prompt, _ = self.read(text)
            if not prompt.strip():
                raise UserError("The prompt is empty; write what the image should show.")
            ids = self.tokenizer.encode(prompt).ids
            check_length(len(ids))
            features.append(self.encoder(torch.tensor([ids]))[0])
        return features

    def known_of(self, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
        """The prompts in which the model knows something, and sentences on what is left out.

        Raises UnknownPromptError if there is none.
        """
        known, notes, unknown = [], [], []
        for prompt in prompts:
            try:
                _, said = self.read(prompt)
            except UnknownPromptError as error:
                unknown.append(error)
                said = f"{error} This prompt is left out."
            else:
                known.append(prompt)
            notes += [said] if said else []
        if not known:
            raise unknown[0]
        return known, notes

    def read(self, text: str) -> tuple[str, str | None]:
        """The prompt that is encoded for a text, and a sentence on it, as ``reading.read``."""
        check_characters("The prompt", text)
        return read(text, self.known) if self.known else (text, None)


def load_text_encoder(path: str | Path, device: torch.device | str = "cpu") -> TextEncoder:
    """Load a T5 encoder and its tokenizer: ``read_t5``, then ``build_t5``."""
    file = read_t5(path)
    tokenizer = file.tokenizer()  # checked before the weights are loaded
    return TextEncoder(build_t5(file, path, device), tokenizer, file.known())


def build_t5(
    file: T5File,
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> T5Encoder:
    """Build the encoder that a file holds. Raises CheckpointError, which names ``path``.

    dtype: of the layers' computation; None is float32 on a CPU and the stored type elsewhere.
    """
    dtype = dtype or compute_dtype(file.tensors, device)
    return filled(partial(T5Encoder, file.config, dtype=dtype), nn, file.tensors, device, path)
