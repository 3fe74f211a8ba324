"""Sample the images of the comparison; ``ROWS`` lists what is compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diversevar_core.analysis.judge import self_alignment
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.methods.ssr_sar import PAPER
from diversevar_core.methods.starts import Starts, choose_starts
from diversevar_core.models.family import Family
from diversevar_core.sampling.method import Method
from diversevar_core.sampling.sampler import sample
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import TextEncoder, load_text_encoder
from diversevar_core.vae.autoencoder import to_image
from diversevar_core.vae.vae import VAE

from .features import digest


@dataclass(frozen=True)
class Row:
    """A way to sample: the model's official settings, with guidance_start and methods."""

    guidance_start: int = 0
    methods: tuple[Method, ...] = ()
    starts: Starts | None = None


ROWS = {
    "vanilla": Row(),
    "ssr+sar": Row(methods=(PAPER,)),  # the preset
    "late guidance": Row(guidance_start=4),
    "diverse starts": Row(guidance_start=4, starts=Starts(candidates=64, side=6)),
}


class Drawn(NamedTuple):
    """Pictures, the model's own scores of each, and the times."""

    pictures: Tensor  # (B, 3, H, W) in 0..1
    scores: dict[str, list[float]]  # nats per picture
    seconds: dict[str, float]  # to draw and to judge them


def description(method: Method | Starts) -> str:
    """The method and its parameters as a text that is the same in every process."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    shown = (f"{name}={getattr(v, '__qualname__', None) or repr(v)}" for name, v in values.items())
    return f"{type(method).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Sampler:
    """The three models, each loaded when it is first needed."""

    model_path: Path
    vae_path: Path
    text_path: Path
    device: str

    @cached_property
    def model(self) -> Family:
        model = load_model(self.model_path, self.device)
        if model.reads is not Text:
            raise ValueError(
                f"{self.model_path} takes classes, not prompts; use an Infinity model."
            )
        return model

    @cached_property
    def tokenizer(self) -> VAE:
        return load_vae(self.vae_path, self.device)

    @cached_property
    def text(self) -> TextEncoder:
        return load_text_encoder(self.text_path, self.device)

    def settings(self, row: Row) -> Settings:
        """The row's settings for this model."""
        return replace(self.model.defaults(), guidance_start=row.guidance_start)

    def facts(self, row: Row) -> dict[str, str]:
        """Everything that the row's pictures depend on, except prompts and seeds."""
        return {
            "model": digest(self.model_path),
            "tokenizer": digest(self.vae_path),
            "text encoder": digest(self.text_path),
            "kind of device": torch.device(self.device).type,
            "settings": repr(self.settings(row)),
            "methods": ", ".join(map(description, [*row.methods, *filter(None, [row.starts])])),
        }

    def draw(
        self, row: Row, prompts: Sequence[str], each: int, first_seed: int, batch: int
    ) -> Drawn:
        """Draw one picture for each of ``prompts``, in which each prompt comes ``each`` times.

        Seeds count from ``first_seed``; diverse starts choose a prompt's seeds among candidates
        from its first seed on. The times do not include loading.
        """
        models, read, schedule = (self.model, self.tokenizer), self.text, self.model.schedule()
        settings, starts = self.settings(row), row.starts or Starts(1)
        started = time.perf_counter()
        texts, seeds = [], []
        for i in range(0, len(prompts), each):
            text = Text(read([prompts[i]]))
            how = (*models, text, schedule, settings, first_seed + i, row.methods)
            seeds += choose_starts(starts, each, *how)
            texts += text.repeat(each).positive
        parts = [Text(texts[i : i + batch]) for i in range(0, len(texts), batch)]
        pictures, bits = [], []
        for part in parts:
            taken = seeds[batch * len(bits) :][: len(part)]
            steps = list(sample(*models, part, schedule, settings, taken, methods=row.methods))
            bits.append([step.tokens for step in steps])
            with torch.no_grad():
                pictures.append(to_image(self.tokenizer.decode(steps[-1].f_hat)).cpu())
        drawn = time.perf_counter()
        judged = [
            self_alignment(*models, maps, part, schedule)
            for maps, part in zip(bits, parts, strict=True)
        ]
        alignment, likelihood = map(torch.cat, zip(*judged, strict=True))
        return Drawn(
            torch.cat(pictures),
            {"self-alignment": alignment.tolist(), "log-likelihood": likelihood.tolist()},
            {"drawn": drawn - started, "judged": time.perf_counter() - drawn},
        )
