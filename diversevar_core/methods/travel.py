"""Scale travel: keep an image's coarse tokens and draw the rest again under the clean text.

Park et al., "DiverseVAR", arXiv 2511.21415, stage 2: text noise makes an idea differ and the
image worse; its coarse maps carry the idea, and the model draws the others again from them. The
paper's side is not public.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..models.family import Family
from ..sampling.conditions import Condition
from ..sampling.run import Method, Step
from ..sampling.sampler import sample
from ..sampling.schedule import Schedule
from ..sampling.settings import Settings
from ..vae.tokenizer import Tokenizer
from .keep import Keep
from .text_noise import TextNoise


def sample_and_travel(
    model: Family,
    tokenizer: Tokenizer,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seeds: Sequence[int],
    methods: Sequence[Method] = (),
    travel: int = 0,
    **options,
) -> Iterator[Step]:
    """``sample``, and with ``travel`` again; yields all maps of both.

    The finished images are encoded, their maps up to the side ``travel`` are kept, and the others
    drawn with the same seeds, without text noise. 0 samples once.
    """
    how = (model, tokenizer, condition, schedule, settings, seeds)
    for step in sample(*how, methods=methods, **options):
        yield step
    if not travel:
        return
    with torch.no_grad():
        maps = tokenizer.quantize_maps(tokenizer.features(tokenizer.decode(step.f_hat)), schedule)
    clean = [method for method in methods if not isinstance(method, TextNoise)]
    yield from sample(*how, methods=[*clean, Keep(maps, side=travel)], **options)
