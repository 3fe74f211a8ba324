"""The scale loop: how every model family makes an image, coarse map to fine.

One transformer pass a map, over all its tokens at once; what was drawn is added to ``f_hat``,
from which the next map's input is cut (VAR, arXiv 2404.02905; Infinity, arXiv 2412.04431).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..finite import not_finite
from ..models.family import Family
from ..models.pairing import check_pair
from ..vae.tokenizer import Tokenizer
from .conditions import Condition
from .random import PerImage, Shared, Stream, mixture, pick, truncate
from .run import Context, Method, Run, Step, check_methods, drawn_maps
from .schedule import Scale, Schedule
from .settings import Guidance, Settings, guidance


def sample(
    model: Family,
    tokenizer: Tokenizer,
    condition: Condition,
    schedule: Schedule,
    settings: Settings,
    seeds: Sequence[int],
    shared: bool = False,
    methods: Sequence[Method] = (),
    exact_batch: bool = False,
    maps: int | None = None,
) -> Iterator[Step]:
    """Sample a batch of images, yielding after every map; the last step's f_hat is decoded.

    seeds: image i draws with seeds[i] what it draws alone; with ``shared`` the batch draws from
    one stream, seeded with the first, as the original implementations. methods: in any order, they
    keep to their own. exact_batch: matrix products round differently with the number of rows, which
    rarely turns a token; with this every image is computed alone (unless a method acts on the
    batch together), the same bit for bit in any company. maps: draw only the first so many. Raises
    ValueError where models, settings, methods and schedule do not fit, and where logits are not
    finite.
    """
    check_pair(model, tokenizer)
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
        loops.append(scale_loop(model, tokenizer, context, settings, stream, methods))
    if len(loops) == 1:
        yield from loops[0]
        return
    for steps in zip(*loops, strict=True):
        parts = zip(*(step[1:] for step in steps), strict=True)
        yield Step(steps[0].scale, *map(torch.cat, parts))


@torch.no_grad()
def scale_loop(
    model: Family,
    tokenizer: Tokenizer,
    context: Context,
    settings: Settings,
    stream: Stream,
    methods: Sequence[Method],
) -> Iterator[Step]:
    """``sample`` for images that are computed together and draw from ``stream``."""
    drawn = context.schedule[: len(context.plan)]
    acting = [method.begin(context) for method in methods]
    advance = partial(step, model, tokenizer, context.condition, settings, stream, acting)
    for method in acting:
        advance = partial(method.step, advance)
    guided = [scale.k for scale, at in zip(drawn, context.plan, strict=True) if at.g != 1]
    run = Run(model.start(context.schedule, len(drawn), guided=bool(guided)))
    means = []  # not finite where a logit is not; read once, as a card would be waited for
    for scale, at in zip(drawn, context.plan, strict=True):
        if guided and scale.k == guided[-1] + 1:
            run.drop_unconditional()
        try:
            run, left = advance(run, scale, at)
        except torch.linalg.LinAlgError as error:  # of what is not finite
            raise not_finite(model, context.condition, methods, scale) from error
        means.append(left.logits.mean())
        if scale is drawn[-1]:
            for drawn_before, mean in zip(drawn, torch.stack(means).tolist(), strict=True):
                if not math.isfinite(mean):
                    raise not_finite(model, context.condition, methods, drawn_before)
        yield left


def step(
    model: Family,
    tokenizer: Tokenizer,
    condition: Condition,
    settings: Settings,
    stream: Stream,
    methods: Sequence[Method],
    run: Run,
    scale: Scale,
    at: Guidance,
) -> tuple[Run, Step]:
    """Draw one map; ``run`` is used up, the one that is returned goes on."""
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
        numbers = noise[first : first + len(choices)]  # split: a codebook's logits are large
        pairs = zip(choices.split(1), numbers.split(1), strict=True)
        return torch.cat([pick(kept(one), numbers) for one, numbers in pairs])

    for method in methods:
        choose = partial(method.draw, choose, scale)
    tokens = choose(choices).squeeze(-1)  # one choice a token (VAR), or one a bit
    for method in methods:
        tokens = method.tokens(tokens, scale)
    drawn = mixture(kept(choices).squeeze(-2), stream, scale) if settings.more_smooth else tokens
    f_hat, features = tokenizer.accumulate(run.f_hat, drawn, scale)
    return Run(state, condition, f_hat, features), Step(scale, logits, tokens, f_hat)


def guide(rows: Tensor, g: float) -> Tensor:
    """Mix (2B, ...) rows, conditional ones first, to (B, ...); they are used up."""
    conditional, unconditional = rows.chunk(2)
    return conditional.mul_(g) + unconditional.mul_(1 - g)
