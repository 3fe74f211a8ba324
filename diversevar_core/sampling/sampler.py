"""The scale loop: how every model family makes an image, coarse map to fine.

One transformer pass per map predicts all its tokens at once. The drawn tokens are added to
``f_hat``, which is resized to the next map's input (VAR, arXiv 2404.02905; Infinity, arXiv
2412.04431).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..conditions import Condition
from ..models.family import Family
from ..schedule import Scale, Schedule
from ..settings import Guidance, Settings, guidance
from ..vae.vae import VAE
from .finite import not_finite
from .pairing import check_pair
from .random import PerImage, Shared, Stream, mixture, pick, truncate
from .run import Context, Method, Run, Step, check_methods, drawn_maps


def sample(
    model: Family,
    vae: VAE,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seeds: Sequence[int],
    shared: bool = False,
    methods: Sequence[Method] = (),
    exact_batch: bool = False,
    maps: int | None = None,
) -> Iterator[Step]:
    """Sample a batch of images; yields a step after every map. Decode the last step's f_hat.

    seeds: image i is drawn with seeds[i], whatever the other images are. shared: draw the batch
    from one stream with the first seed, as the original implementations do. methods: in any order;
    they are sorted. exact_batch: compute each image alone, unless a method needs the batch
    (``together``): matrix products round differently with the number of rows, which can change a
    token, and with this each image is bit for bit the same in every batch. maps: how many maps to
    draw, None for all. Raises UserError if models, settings, methods and schedule do not fit
    each other, and where logits are not finite.
    """
    check_pair(model, vae)
    check_methods(methods)
    choices = model.token_kind.choices
    settings.check(model.depth, choices)
    plan = guidance(settings, schedule)[: len(drawn_maps(schedule, methods)[:maps])]
    methods = sorted(methods, key=lambda method: method.order)
    groups = [(condition, range(len(condition)))]
    if exact_batch and not shared and not any(method.together for method in methods):
        groups = [(part, [i]) for i, part in enumerate(condition.split())]
    loops = []
    for part, group in groups:
        own = [seeds[i] for i in group]
        stream = Shared(own[0], condition.device) if shared else PerImage(own)
        context = Context(schedule, group, own, part, plan, choices, model.depth)
        loops.append(scale_loop(model, vae, context, settings, stream, methods))
    if len(loops) == 1:
        yield from loops[0]
        return
    for steps in zip(*loops, strict=True):
        parts = zip(*(step[1:] for step in steps), strict=True)
        yield Step(steps[0].scale, *map(torch.cat, parts))


@torch.no_grad()
def scale_loop(
    model: Family,
    vae: VAE,
    context: Context,
    settings: Settings,
    stream: Stream,
    methods: Sequence[Method],
) -> Iterator[Step]:
    """``sample`` for images that are computed together, with random numbers from ``stream``."""
    drawn = context.schedule[: len(context.plan)]
    acting = [method.begin(context) for method in methods]
    advance = partial(step, model, vae, context.condition, settings, stream, acting)
    for method in acting:
        advance = partial(method.step, advance)
    guided = [scale.k for scale, at in zip(drawn, context.plan, strict=True) if at.g != 1]
    run = Run(model.start(context.schedule, len(drawn), guided=bool(guided)))
    means = []  # of the logits, not finite where one logit is not; read once, as it syncs a GPU
    for scale, at in zip(drawn, context.plan, strict=True):
        if guided and scale.k == guided[-1] + 1:
            run.drop_unconditional()
        try:
            run, result = advance(run, scale, at)
        except torch.linalg.LinAlgError as error:  # raised for numbers that are not finite
            raise not_finite(model, context.condition, methods, scale) from error
        means.append(result.logits.mean())
        if scale is drawn[-1]:
            for drawn_before, mean in zip(drawn, torch.stack(means).tolist(), strict=True):
                if not math.isfinite(mean):
                    raise not_finite(model, context.condition, methods, drawn_before)
        yield result


def step(
    model: Family,
    vae: VAE,
    condition: Condition,
    settings: Settings,
    stream: Stream,
    methods: Sequence[Method],
    run: Run,
    scale: Scale,
    at: Guidance,
) -> tuple[Run, Step]:
    """Draw one map; ``run`` must not be used afterwards, only the one that is returned."""
    state, (g, tau) = run.state, at
    for method in methods:
        condition = method.text(condition, scale)
    if condition is not run.condition:
        model.condition(state, condition)

    x = model.embed(state, run.features, scale, [method.features for method in methods])
    for method in methods:
        x = method.input(x, scale)
    for i in range(model.depth):
        block = partial(model.block, state, i, scale)
        for method in methods:
            block = partial(method.block, block, i, scale)
        x = block(x)
        if g != 1 and i == model.depth + settings.cfg_layer:
            x = guide(x, g).repeat(2, 1, 1)
    for method in methods:
        x = method.output(x, scale)

    if g != 1 and settings.cfg_layer == 0:
        logits = guide(model.logits(state, x).div_(tau), g)
    else:
        logits = model.logits(state, x[: len(condition)]).div_(tau)
    for method in methods:
        logits = method.logits(logits, scale)

    choices = logits.unflatten(-1, (-1, model.token_kind.choices))
    kept = partial(truncate, top_k=settings.top_k, top_p=settings.top_p)
    noise = stream.exponential(tuple(choices.shape), choices.device)

    def choose(choices: Tensor, first: int = 0) -> Tensor:
        numbers = noise[first : first + len(choices)]  # image by image, as logits can be large
        pairs = zip(choices.split(1), numbers.split(1), strict=True)
        return torch.cat([pick(kept(one), numbers) for one, numbers in pairs])

    for method in methods:
        choose = partial(method.draw, choose, scale)
    tokens = choose(choices).squeeze(-1)  # one choice a token (VAR), or one a bit
    for method in methods:
        tokens = method.tokens(tokens, scale)
    drawn = mixture(kept(choices).squeeze(-2), stream, scale) if settings.more_smooth else tokens
    f_hat, features = vae.accumulate(run.f_hat, drawn, scale)
    return Run(state, condition, f_hat, features), Step(scale, logits, tokens, f_hat)


def guide(rows: Tensor, g: float) -> Tensor:
    """Mix (2B, ...) rows, conditional ones first, to (B, ...); overwrites them."""
    conditional, unconditional = rows.chunk(2)
    return conditional.mul_(g) + unconditional.mul_(1 - g)
