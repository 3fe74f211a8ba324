"""Scale travel: keep an image's coarse maps and draw the others again with the clean text.

Park et al., "DiverseVAR", arXiv 2511.21415, stage 2. Text noise makes images more different but
worse. Their coarse maps are kept, as they decide what is shown, and the model draws the later maps
again without noise. The paper's number of kept maps is not public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ..sampling.method import Method, Step
from ..schedule import Schedule
from ..vae.vae import VAE
from .keep import Keep
from .text_noise import TextNoise


def sample_and_travel(
    sample: Callable[[Sequence[Method]], Iterator[Step]],
    vae: VAE,
    schedule: Schedule,
    methods: Sequence[Method],
    side: int,
) -> Iterator[Step]:
    """Sample twice; yields the steps of both passes.

    sample: methods -> steps; called twice, with the same seeds. For the second pass the finished
    images are encoded and their maps up to ``side`` are kept; there is no text noise.
    """
    for step in sample(methods):
        yield step
    with torch.no_grad():  # one by one, as decoding a million pixels takes gigabytes
        features = [vae.features(vae.decode(f_hat)) for f_hat in step.f_hat.split(1)]
        maps = vae.quantize_maps(torch.cat(features), schedule)
    clean = [method for method in methods if not isinstance(method, TextNoise)]
    yield from sample([*clean, Keep(maps, side=side)])
