"""The scale loop: how every model family makes a picture, coarse map to fine.

One transformer pass a map, over all its tokens at once; what was drawn is added to ``f_hat``,
from which the next map's input is cut (VAR, arXiv 2404.02905; Infinity, arXiv 2412.04431).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .draw import PerImage, Shared, Stream, draw, mixture, truncate
from .families.infinity import Infinity, Text
from .families.var import VAR
from .methods import Method
from .pairing import check_pair
from .schedule import Scale, Schedule, per_scale
from .tokenizers.bsq import BSQ
from .tokenizers.vqvae import VQVAE


@dataclass(frozen=True)
class Settings:
    """How to sample.

    cfg: guidance, and tau: temperature, a value a scale (a shorter list repeats its last);
    cfg_schedule: "flat" takes cfg as it is, 1 is none (Infinity); "ramp" grows from none at the
    first map to 1 + cfg at the last (VAR). cfg_layer: 0 guides the logits, -m the output of the
    m-th block from the end. top_k, top_p: as in ``draw.truncate``. more_smooth: blend codebook
    rows instead of choosing one (VAR only).
    """

    cfg: tuple[float, ...]
    cfg_schedule: str
    tau: tuple[float, ...]
    top_k: int
    top_p: float
    cfg_layer: int = 0
    more_smooth: bool = False


class Step(NamedTuple):
    """What one map left behind.

    logits (B, n, channels) after guidance and temperature; tokens (B, n) or bits (B, n, bits);
    f_hat (B, D, H, W), the sum so far.
    """

    scale: Scale
    logits: Tensor
    tokens: Tensor
    f_hat: Tensor


def guidance(settings: Settings, schedule: Schedule) -> tuple[float, ...]:
    """The factor g of every scale: guided = g * conditional + (1 - g) * unconditional."""
    cfg = per_scale("cfg", settings.cfg, schedule)
    if settings.cfg_schedule == "flat":
        return cfg
    if settings.cfg_schedule == "ramp":
        last = max(schedule[-1].k, 1)
        return tuple(1 + value * scale.k / last for value, scale in zip(cfg, schedule, strict=True))
    raise ValueError(f"cfg_schedule must be flat or ramp, not {settings.cfg_schedule!r}.")


def free_early(settings: Settings, schedule: Schedule, side: int) -> Settings:
    """Draw the maps before this side as the model learned them: temperature 1, no guidance.

    Guidance and a low temperature make the first maps, which decide the idea, nearly the same for
    every seed; the later ones follow the prompt well without their help. The sampler's form of
    guidance in a limited interval (Kynkaanniemi et al., arXiv 2404.07724). 0 changes nothing.
    """
    none = 1.0 if settings.cfg_schedule == "flat" else 0.0
    free = [scale.side < side for scale in schedule]
    cfg, tau = (
        tuple(own if early else value for early, value in zip(free, values, strict=True))
        for own, values in (
            (none, per_scale("cfg", settings.cfg, schedule)),
            (1.0, per_scale("tau", settings.tau, schedule)),
        )
    )
    return replace(settings, cfg=cfg, tau=tau)


def guide(rows: Tensor, g: float) -> Tensor:
    """Mix (2B, ...) rows, conditional ones first, to (B, ...)."""
    conditional, unconditional = rows.chunk(2)
    return g * conditional + (1 - g) * unconditional


def sample(
    model: VAR | Infinity,
    tokenizer: VQVAE | BSQ,
    condition: Tensor | Text,
    schedule: Schedule,
    settings: Settings,
    seed: int,
    shared: bool = False,
    methods: Sequence[Method] = (),
) -> Iterator[Step]:
    """Sample a batch of pictures, yielding after every map; the last step's f_hat is decoded.

    condition: class labels (B,) for VAR, ``Text`` for Infinity. seed: picture i draws what
    seed + i alone draws; with ``shared`` the batch draws from one stream, as the original
    implementations. methods: applied in their order.
    Raises ValueError where models, settings, methods and schedule do not fit.

    On a CPU, where a batch saves no time, every picture is computed alone: matrix products round
    differently with the number of rows, and so its tokens do not depend on its neighbours.
    """
    conditions = split(condition)
    device = (condition if isinstance(condition, Tensor) else condition.positive[0]).device
    if shared:
        stream = Shared(seed, device)
    elif device.type != "cpu":
        stream = PerImage(seed, len(conditions))
    else:
        loops = [
            scale_loop(model, tokenizer, alone, schedule, settings, PerImage(seed + i, 1), methods)
            for i, alone in enumerate(conditions)
        ]
        for steps in zip(*loops, strict=True):
            parts = zip(*(step[1:] for step in steps), strict=True)
            yield Step(steps[0].scale, *map(torch.cat, parts))
        return
    yield from scale_loop(model, tokenizer, condition, schedule, settings, stream, methods)


def split(condition: Tensor | Text) -> list[Tensor | Text]:
    """The condition of every single picture of a batch."""
    if isinstance(condition, Tensor):
        return list(condition.split(1))
    negatives = condition.negative or [None] * len(condition.positive)
    return [
        Text([positive], None if negative is None else [negative])
        for positive, negative in zip(condition.positive, negatives, strict=True)
    ]


@torch.no_grad()
def scale_loop(
    model: VAR | Infinity,
    tokenizer: VQVAE | BSQ,
    condition: Tensor | Text,
    schedule: Schedule,
    settings: Settings,
    stream: Stream,
    methods: Sequence[Method],
) -> Iterator[Step]:
    """``sample`` for pictures that are computed together and draw from ``stream``."""
    check_pair(model, tokenizer)
    factors = guidance(settings, schedule)
    taus = per_scale("tau", settings.tau, schedule)
    if not -model.depth < settings.cfg_layer <= 0:
        raise ValueError(
            f"cfg_layer must be 0 (the logits) or -1 to {1 - model.depth} (a block, counted from "
            f"the last), not {settings.cfg_layer}."
        )
    guided_block = model.depth + settings.cfg_layer  # no block, where the logits are guided
    if min(taus) <= 0:
        raise ValueError(f"tau must be above 0, not {min(taus)}.")
    if settings.top_k < 0 or not 0 <= settings.top_p <= 1:
        raise ValueError(
            f"top_k must be 0 or more and top_p from 0 to 1, "
            f"not {settings.top_k} and {settings.top_p}."
        )
    if settings.more_smooth and isinstance(model, Infinity):
        raise ValueError(
            "more_smooth blends codebook rows, which Infinity does not have; turn it off."
        )
    for method in methods:
        method.check(schedule)

    state = model.start(schedule, guided=any(g != 1 for g in factors))
    conditioned = features = f_hat = None
    for scale, g, tau in zip(schedule, factors, taus, strict=True):
        wanted = condition
        for method in methods:
            wanted = method.text(wanted, scale)
        if wanted is not conditioned:
            model.condition(state, wanted)
            conditioned = wanted

        x = model.embed(state, features, scale)
        for method in methods:
            x = method.input(x, scale)
        for i in range(model.depth):
            run = partial(model.block, state, i, scale)
            for method in methods:
                run = partial(method.block, run, i, scale)
            x = run(x)
            if i == guided_block and g != 1:
                x = guide(x, g).repeat(2, 1, 1)
        for method in methods:
            x = method.output(x, scale)

        if g != 1 and settings.cfg_layer == 0:
            logits = guide(model.logits(state, x) / tau, g)
        else:
            pictures = x.shape[0] // 2 if state.guided else x.shape[0]
            logits = model.logits(state, x[:pictures]) / tau
        for method in methods:
            logits = method.logits(logits, scale)

        kept = truncate(logits.unflatten(-1, (-1, model.choices)), settings.top_k, settings.top_p)
        tokens = draw(kept, stream).squeeze(-1)  # one choice a token (VAR), or one a bit
        for method in methods:
            tokens = method.tokens(tokens, scale)
        drawn = tokens
        if settings.more_smooth:
            drawn = mixture(kept.squeeze(-2), stream, scale.k / schedule[-1].k)
        f_hat, features = tokenizer.accumulate(f_hat, drawn, scale, schedule)
        yield Step(scale, logits, tokens, f_hat)
