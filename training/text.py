"""The included models' text encoder, a small T5, and its vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import T5Config, T5EncoderModel

ALPHABET = "▁abcdefghijklmnopqrstuvwxyz0123456789'.,!?&-"
UNREAD = r"^(an?|the) |[.,!?]+$"  # an article in front, punctuation at the end
SPELLED = -20.0  # log-probability of a single letter: far below every word's


def build_tokenizer(prompts: Sequence[str]) -> Tokenizer:
    """A lower-case unigram vocabulary: each word of the prompts, and letters to spell all others.

    Ids of padding, end and unknown are T5's, and the end token is appended as T5's.
    """
    counts = Counter(word for prompt in prompts for word in prompt.split())
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, SPELLED) for letter in ALPHABET]
    words = [(f"▁{word}", math.log(n / counts.total())) for word, n in sorted(counts.items())]
    tokenizer = Tokenizer(models.Unigram([*special, *letters, *words], unk_id=2))
    tokenizer.add_special_tokens([token for token, _ in special])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(UNREAD), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def build_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 encoder with fresh weights: 2 layers of width 128, feed-forward as in flan-T5."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=64,
            d_ff=256,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> ids (N, longest), padded with 0, and lengths (N,)."""
    rows = [torch.tensor(tokenizer.encode(prompt).ids) for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def encode(encoder: T5EncoderModel, ids: Tensor, lengths: Tensor) -> list[Tensor]:
    """Ids (N, m) -> features (length, Ct) float32 each, with gradients."""
    seen = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    hidden = encoder(input_ids=ids, attention_mask=seen).last_hidden_state.float()
    return [row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)]
