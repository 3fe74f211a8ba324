"""The scale loop: how every model family makes an image, coarse map to fine.

One transformer pass per map predicts all its tokens at once. The drawn tokens are added to
``f_hat``, which is resized to the next map's input (VAR, arXiv 2404.02905; Infinity, arXiv
2412.04431).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Condition
from ..models.family import Family
from ..schedule import Scale, Schedule
from ..settings import Guidance, Settings, guidance
from ..vae.vae import VAE
from .finite import check_finite
from .method import BatchState, Context, Method, Methods, Step
from .pairing import check_pair
from .random import PerImage, Shared, Stream, mixture, pick, truncate


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
    draw, None for all. Raises UserError if models, settings, methods and schedule do not fit each
    other, and if logits are not finite.
    """
    check_pair(model, vae)
    settings.check(model.depth, model.token_kind.choices)
    method = Methods(methods)
    plan = guidance(settings, schedule)[: len(method.drawn(schedule)[:maps])]
    groups = [(condition, range(len(condition)))]
    if exact_batch and not shared and not method.together:
        groups = [(part, [i]) for i, part in enumerate(condition.split())]
    loops = []
    for part, images in groups:
        own = [seeds[i] for i in images]
        stream = Shared(own[0], condition.device) if shared else PerImage(own)
        choices, depth = model.token_kind.choices, model.depth
        context = Context(schedule, images, own, part, plan, choices, depth)
        loops.append(scale_loop(model, vae, context, settings, stream, method))
    steps = map(joined, zip(*loops, strict=True))
    return check_finite(steps, schedule[: len(plan)], model, condition, methods)


def joined(steps: Sequence[Step]) -> Step:
    """One map of several groups of images as one step."""
    if len(steps) == 1:
        return steps[0]
    return Step(steps[0].scale, *map(torch.cat, zip(*(step[1:] for step in steps), strict=True)))


@torch.no_grad()
def scale_loop(
    model: Family, vae: VAE, context: Context, settings: Settings, stream: Stream, method: Method
) -> Iterator[Step]:
    """``sample`` for images that are computed together, with random numbers from ``stream``."""
    method = method.begin(context)
    maps = context.schedule[: len(context.plan)]
    batch = BatchState(model.start(context.schedule, len(maps), context.guided))
    advance = partial(draw_map, model, vae, context.condition, settings, stream, method)
    for scale, at in zip(maps, context.plan, strict=True):
        if context.guided and scale.k == context.last_guided + 1:
            batch.drop_unconditional()  # they would be computed for nothing
        batch, step = method.step(advance, batch, scale, at)
        yield step


def draw_map(
    model: Family,
    vae: VAE,
    condition: Condition,
    settings: Settings,
    stream: Stream,
    method: Method,
    batch: BatchState,
    scale: Scale,
    at: Guidance,
) -> tuple[BatchState, Step]:
    """Draw one map; ``batch`` must not be used afterwards, only the one that is returned."""
    state, (g, tau) = batch.model, at
    condition = method.text(condition, scale)
    if condition is not batch.condition:
        model.condition(state, condition)

    x = method.features(model.embed(state, batch.features), scale)
    x = method.input(x + model.positions(state, scale), scale)
    for i in range(model.depth):
        x = method.block(partial(model.block, state, i, scale), i, scale, x)
        if g != 1 and i == model.depth + settings.cfg_layer:  # Infinity-8B guides at a block
            x = guide(x, g).repeat(2, 1, 1)
    x = method.output(x, scale)

    if g != 1 and settings.cfg_layer == 0:
        logits = guide(model.logits(state, x).div_(tau), g)
    else:  # the head needs no unconditional rows
        logits = model.logits(state, x[: len(condition)]).div_(tau)
    logits = method.logits(logits, scale)

    choices = logits.unflatten(-1, (-1, model.token_kind.choices))
    kept = partial(truncate, top_k=settings.top_k, top_p=settings.top_p)
    noise = stream.exponential(tuple(choices.shape), choices.device)
    tokens, likely = [], []
    for own, numbers in zip(choices.split(1), noise.split(1), strict=True):  # they can be large
        own = kept(method.image_logits(own, scale, tokens))
        tokens.append(pick(own, numbers))
        likely += [own] if settings.more_smooth else []
    tokens = torch.cat(tokens).squeeze(-1)  # one choice a token (VAR), or one a bit
    tokens = added = method.tokens(tokens, scale)
    if settings.more_smooth:  # VAR's; tokens that a method put in place of drawn ones stay whole
        drawn = method.tokens(torch.full_like(tokens, -1), scale) == -1
        weights = mixture(torch.cat(likely).squeeze(-2), stream, scale)
        whole = F.one_hot(tokens, weights.shape[-1]).to(weights)
        added = torch.where(drawn.unsqueeze(-1), weights, whole)
    f_hat, features = vae.accumulate(batch.f_hat, added, scale)
    return BatchState(state, condition, f_hat, features), Step(scale, logits, tokens, f_hat)


def guide(rows: Tensor, g: float) -> Tensor:
    """Mix (2B, ...) rows, conditional ones first, to (B, ...); overwrites them."""
    conditional, unconditional = rows.chunk(2)
    return conditional.mul_(g) + unconditional.mul_(1 - g)
