"""Scale travel: keep an image's coarse maps and draw the others again with the clean text.

Park et al., "DiverseVAR", arXiv 2511.21415, stage 2. Text noise makes images more different but
worse. Their coarse maps are kept, as they decide what is shown, and the model draws the later maps
again without noise. The paper's number of kept maps is not public.
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
    """``sample`` once (``travel`` 0), or twice; yields the steps of both passes.

    For the second pass the finished images are encoded and their maps up to the side ``travel``
    are kept. The others are drawn again with the same seeds, without text noise.
    """
    how = (model, tokenizer, condition, schedule, settings, seeds)
    for step in sample(*how, methods=methods, **options):
        yield step
    if not travel:
        return
    with torch.no_grad():  # one by one, as decoding a million pixels takes gigabytes
        found = [tokenizer.features(tokenizer.decode(one)) for one in step.f_hat.split(1)]
        maps = tokenizer.quantize_maps(torch.cat(found), schedule)
    clean = [method for method in methods if not isinstance(method, TextNoise)]
    yield from sample(*how, methods=[*clean, Keep(maps, side=travel)], **options)
