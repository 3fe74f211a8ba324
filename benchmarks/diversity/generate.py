"""How the pictures are made: the only file here that samples, and the table of what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diversevar_core.checkpoints import load_model, load_tokenizer
from diversevar_core.conditions import Text
from diversevar_core.families.family import Family
from diversevar_core.methods import Method
from diversevar_core.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.spectral import DiverseVAR
from diversevar_core.text import TextEncoder, load_text_encoder
from diversevar_core.tokenizers.autoencoder import to_image
from diversevar_core.tokenizers.tokenizer import Tokenizer

from .features import digest


@dataclass(frozen=True)
class Row:
    """A way to sample: the model's official settings, guided from a side on, with methods."""

    guide_from: int = 0
    methods: tuple[Method, ...] = ()


ROWS = {
    "vanilla": Row(),
    "ssr+sar": Row(methods=(DiverseVAR(ssr=0.5, sar=0.25, sides=(4, 6)),)),
    "late guidance": Row(guide_from=4),
}


@dataclass(frozen=True)
class Sampler:
    """The three models, each read when it is first needed."""

    model_path: Path
    tokenizer_path: Path
    text_path: Path
    device: str

    @cached_property
    def model(self) -> Family:
        model = load_model(self.model_path, self.device)
        if model.reads is not Text:
            raise ValueError(
                f"{self.model_path} paints classes, and every bench has prompts; take an Infinity."
            )
        return model

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path, self.device)

    @cached_property
    def text(self) -> TextEncoder:
        return load_text_encoder(self.text_path, self.device)

    def settings(self, row: Row) -> Settings:
        """The row's settings for this model."""
        return replace(self.model.defaults(), guide_from=row.guide_from)

    def facts(self, row: Row) -> dict[str, str]:
        """Everything that the row's pictures depend on besides prompts and seeds."""
        return {
            "model": digest(self.model_path),
            "tokenizer": digest(self.tokenizer_path),
            "text encoder": digest(self.text_path),
            "kind of device": torch.device(self.device).type,
            "settings": repr(self.settings(row)),
            "methods": repr(row.methods),
        }

    def pictures(self, row: Row, prompts: Sequence[str], seed: int) -> Tensor:
        """A picture a prompt, seeds from ``seed`` up: (B, 3, H, W) in 0..1 on the CPU."""
        features = dict.fromkeys(prompts)
        for prompt in features:
            (features[prompt],) = self.text([prompt])
        condition = Text([features[prompt] for prompt in prompts])
        settings, schedule = self.settings(row), self.model.schedule()
        models, seeds = (self.model, self.tokenizer, condition), range(seed, seed + len(prompts))
        *_, last = sample(*models, schedule, settings, seeds, methods=row.methods)
        with torch.no_grad():
            return to_image(self.tokenizer.decode(last.f_hat)).cpu()
