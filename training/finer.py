"""Give the small emoji model two more maps, of sides 12 and 16: ``python -m training.finer``.

Its maps are then Infinity's at 0.06M, and a token covers 8 pixels where it covered 16.
``tokenizer`` starts from the small VAE without its level of full resolution. While it trains, the
mean of each 2 x 2 of its features is held near the small encoder's, so that the first five maps
mean what the transformer knows. ``transformer`` goes on from the small transformer and text
encoder, with what these list and the prompts of ``added.txt``; some steps are of the first five
maps, the others of all. ``decoder`` then learns to show what the transformer in ``--models`` draws.
All resume from their checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.methods.keep import Keep
from diversevar_core.resize import area
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import SQUARE_SIDES, square
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.bsq import BSQ

from .colours import colour_prompts, figure, with_colours
from .data import ADDED, Data, contact_sheet, load, to_model
from .growth import encoded, sampled
from .judge import Judge, read_judge
from .loop import Log, autocast, batches, kept, learning_rate, resume, save
from .sharp import LEVEL, Pictures, Sharpening, compiled, draw_sheet, errors, write
from .teacher import Teacher, by_map, forward, losses, self_correcting
from .text import tokenize
from .tokenizer import COMMITMENT, ENTROPY, entropy_term, initialise, psnr, rebuilt, summed
from .transformer import WarmRun, export, read

SIDES = SQUARE_SIDES[:7]
PEAK, WARMUP, SEED = 1.5e-3, 50, 5
ALIKE = 4.0  # weight of the difference from the small encoder's features
COARSE = 5  # maps of the small model
# one step in so many is of the first maps only: in the first quarter of the steps, and later
EVERY = 2, 8
MORE = 4  # times as many pictures in such a step
SHARES = 0.375, 0.375, 0.25  # of a batch: known prompts, new ones, things in other colours
TRANSFORMER_PEAK = 1.5e-3
# a difference in grey that adds one to what a bit of a spot costs, and the most that is added
SPOT, SPOT_COST = 0.02, 3.0
# what the new maps draw is decided by then: as warm as the others, their colours are patchy
CFG = (4.0,) * COARSE + (1.0,) * (len(SIDES) - COARSE)
TAU = (0.5,) * COARSE + (0.05,) * (len(SIDES) - COARSE)
NAMED, EACH = 60, 2  # prompts whose samples the classifier names while it trains, and of each


def shrunk(vae: BSQ) -> BSQ:
    """The VAE without its level of full resolution, whose stride is half as large."""
    config = vae.config
    config = replace(config, channels=config.channels[1:], halvings=config.halvings - 1)
    tokenizer = BSQ(config)
    initialise(tokenizer)
    own, kept = tokenizer.state_dict(), {}
    for name, tensor in vae.state_dict().items():
        name = LEVEL.sub(lambda n: str(int(n[0]) - 1), name)
        if name in own and own[name].shape == tensor.shape:
            kept[name] = tensor
    tokenizer.load_state_dict(kept, strict=False)
    return tokenizer


def tokenizer_losses(
    tokenizer: BSQ, judge: Judge, pictures: Tensor, coarse: Tensor
) -> dict[str, Tensor]:
    """The loss and its parts for pictures (B, 3, H, W) with the small features (B, d, 8, 8)."""
    schedule = square(SIDES)
    features = tokenizer.encoder(pictures).float()
    bits = tokenizer.quantize_maps(features.detach(), schedule)
    f_hat = summed(tokenizer, bits, schedule)
    made = tokenizer.decode(features + (f_hat - features).detach()).float()
    means = area(features, *coarse.shape[-2:])
    parts = errors(judge, made, pictures) | {
        "alike": F.mse_loss(means, coarse),
        "commitment": F.mse_loss(features, f_hat),
        "entropy": entropy_term(tokenizer, features, bits, schedule),
        "signs": ((means > 0) == (coarse > 0)).float().mean(),
    }
    parts["loss"] = parts["loss"] + ALIKE * parts["alike"]
    parts["loss"] += COMMITMENT * parts["commitment"] + ENTROPY * parts["entropy"]
    return parts


def train_tokenizer(args: argparse.Namespace) -> None:
    """Fine-tune the small VAE at half its stride."""
    device = torch.device(args.device)
    small = load_vae(args.models / "vae.safetensors", device)
    torch.manual_seed(SEED)
    tokenizer = compiled(shrunk(small).to(device))
    judge, _ = read_judge(args.judge)
    judge.to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    checkpoint = args.folder / "tokenizer.ckpt"
    state = resume(checkpoint) or {"step": 0}
    if state["step"]:
        tokenizer.load_state_dict(state["tokenizer"])
        optimizer.load_state_dict(state["optimizer"])
    pictures, log = Pictures(args.data, args.full), Log(every=20)
    shown = torch.cat([one[:: len(one) // 12][:12] for one in pictures.sets])
    for step in range(state["step"], args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, PEAK, WARMUP)
        right = to_model(pictures.batch(step, args.batch).to(device))
        right = right.contiguous(memory_format=torch.channels_last)
        with autocast(device):
            with torch.no_grad():
                coarse = small.encoder(right).float()
            parts = tokenizer_losses(tokenizer, judge, right, coarse)
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        log(step + 1, {name: part.detach() for name, part in parts.items()})
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            saved = {"tokenizer": tokenizer.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, saved | {"step": step + 1})
            with torch.compiler.set_stance("force_eager"):
                made = rebuilt(tokenizer, shown.to(device), square(SIDES)).cpu()
            each = psnr(made, shown)
            print(f"PSNR {each[:12].mean():.2f} and {each[12:].mean():.2f} dB", flush=True)
            sheet = torch.cat((shown[:12], made[:12], shown[12:], made[12:]))
            contact_sheet(sheet.numpy(), 12).save(args.folder / "tokenizer.png")
            write(tokenizer, args.folder)


def pictures_of(
    data: Data, prompts: Sequence[str], tokenizer: BSQ, path: Path
) -> tuple[Data, Tensor]:
    """The pictures and concepts of these prompts, and their features (N, d, h, w).

    Those of all of ``data`` are kept at ``path``.
    """
    features = encoded(tokenizer, data.pictures, path)
    wanted = torch.tensor([concept.prompt in prompts for concept in data.concepts])
    kept = wanted[data.concept]
    chosen = Data(
        data.pictures[kept],
        (wanted.cumsum(0) - 1)[data.concept[kept]],
        data.design[kept],
        tuple(concept for concept in data.concepts if concept.prompt in prompts),
    )
    return chosen, features[kept]


def spots(pictures: Tensor) -> Tensor:
    """What a bit of the new maps costs in each part of pictures (N, H, W, 3), (N, H/8, W/8).

    More than 1 in small spots inside a figure that is not pale, such as eyes: they differ from the
    median of 18 pixels around them. Without it the likeliest bits leave them out, as their place is
    uncertain.
    """
    grey = F.avg_pool2d(pictures.float().mean(dim=-1)[:, None] / 255, 2)
    around = F.unfold(F.pad(grey, (4,) * 4, mode="replicate"), 9).median(dim=1).values
    drawn = F.pad(F.avg_pool2d(figure(pictures)[:, None], 2), (4,) * 4, mode="replicate")
    inside = ((F.avg_pool2d(drawn, 9, stride=1) - 0.6) / 0.3).clamp(0, 1)
    apart = (grey - around.view_as(grey)).abs() * inside
    return 1 + (F.avg_pool2d(apart, 4).squeeze(1) / SPOT).clamp(max=SPOT_COST)


def train_transformer(args: argparse.Namespace) -> None:
    """Fine-tune the small transformer and text encoder on all seven maps.

    A batch is of prompts that they know, those that are new to them, and things in other colours.
    """
    known = included.prompts(args.models / "text_encoder.safetensors")
    coloured = {prompt for prompt, _, _ in colour_prompts()}
    prompts = sorted({*known, *ADDED, *coloured})
    run = WarmRun(args.models, prompts, args.device, SIDES)
    for models in (run.models, run.average):
        models["model"].config = replace(models["model"].config, cfg=CFG, tau=TAU)
    checkpoint = args.folder / "transformer.ckpt"
    run.resume(checkpoint)
    if args.export:
        export(run.average["model"], run.text(), args.export, prompts)
        return

    device = torch.device(args.device)
    tokenizer = load_vae(args.folder / "vae.safetensors", device)
    judge, named = read_judge(args.judge)
    thing_of = {prompt: thing for prompt, thing, _ in colour_prompts() if prompt not in named}
    asked = prompts[:: len(prompts) // NAMED][:NAMED]
    asked = [prompt for prompt in asked for _ in range(EACH)]
    path = args.folder / "coloured.pt"
    data, features = pictures_of(with_colours(load(args.data)), prompts, tokenizer, path)
    costs = torch.cat([spots(some) for some in data.pictures.split(64)])
    names = [concept.prompt for concept in data.concepts]
    ids, lengths = (t.to(device) for t in tokenize(run.words, names))
    kind = [0 if name in known else 2 if name in coloured else 1 for name in names]
    kind = torch.tensor(kind)[data.concept]
    pools = [(kind == k).nonzero().squeeze(1) for k in range(len(SHARES))]
    model = run.models["model"]
    whole = model.schedule()
    sizes = {COARSE: MORE * args.batch, len(SIDES): args.batch}
    teachers = {n: Teacher.of(model, whole[:n], device) for n in sizes}
    orders = {
        n: [
            batches(len(pool), round(share * size), SEED + n, run.step)
            for pool, share in zip(pools, SHARES, strict=True)
        ]
        for n, size in sizes.items()
    }
    kernel = SDPBackend.EFFICIENT_ATTENTION
    if device.type == "cpu":  # there the gradient of plain matrix products is faster
        kernel = SDPBackend.MATH
        for block in model.blocks:
            block.sa.attention = by_map(whole)
    for block in model.blocks:
        block.compile()  # twice as fast
    logs, done = {n: Log(every=25) for n in sizes}, dict.fromkeys(sizes, 0)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        maps = len(SIDES) if run.step % EVERY[run.step >= args.steps // 4] else COARSE
        chosen = zip(pools, orders[maps], strict=True)
        places = torch.cat([pool[next(order)] for pool, order in chosen])
        concept = data.concept[places].to(device)
        seen = features[places].float().to(device)
        batch = self_correcting(tokenizer, seen, whole[:maps], generator)
        with autocast(device), sdpa_kernel(kernel):
            rows = read(run.models, ids[concept], lengths[concept], generator)
            logits = forward(model, teachers[maps], rows, batch.inputs, ids.shape[1])
        # in the new maps a bit costs what its error changes, as half of all are close to neither
        cost = [area(costs[places, None], scale.h, scale.w).flatten(1) for scale in whole[:maps]]
        cost = batch.distance * torch.cat(cost, dim=1)[..., None].to(device)
        cost = torch.where(teachers[maps].level[:, None] >= COARSE, cost, 1.0)
        parts = losses(logits, batch.targets, teachers[maps], cost)
        rate = learning_rate(run.step, args.steps, TRANSFORMER_PEAK, WARMUP)
        run.update(parts["loss"], rate)
        done[maps] += 1
        logs[maps](done[maps], {name: part.detach() for name, part in parts.items()})
        if run.step % 100 == 0 or run.step == args.steps:
            run.save(checkpoint)
        if run.step % 300 == 0 or run.step == args.steps:
            made = sampled(run, tokenizer, asked)
            best = judge.judge(made).concept.argmax(1)
            things = [thing_of.get(prompt, prompt) for prompt in asked]
            right = [named[at] == thing for at, thing in zip(best.tolist(), things, strict=True)]
            print(f"{sum(right) / len(right):.3f} named rightly", flush=True)
            sheet = args.folder / f"transformer-{run.step:05d}.png"
            contact_sheet(made.numpy(), 12).save(sheet)


@torch.no_grad()
def redrawn(models: Path, tokenizer: BSQ, features: Tensor, prompts: list[str]) -> Tensor:
    """f_hat (N, d, H, W) float16 of pictures whose last maps the transformer draws.

    features: (N, d, H, W) of the pictures. The first four maps of every second one are kept, and
    the first five of the others.
    """
    device = next(tokenizer.parameters()).device
    model = load_model(models / "transformer.safetensors", device)
    text = load_text_encoder(models / "text_encoder.safetensors", device)
    schedule, made = model.schedule(), torch.empty_like(features, dtype=torch.float16)
    for side in SIDES[COARSE - 2 : COARSE]:
        places = torch.arange(len(features))[SIDES.index(side) % 2 :: 2]
        for some in places.split(64):
            maps = tokenizer.quantize_maps(features[some].float().to(device), schedule)
            condition = Text(text([prompts[place] for place in some]))
            how = schedule, model.defaults(), [SEED + place for place in some.tolist()]
            kept = Keep(maps, side)
            with autocast(device):
                *_, last = sample(model, tokenizer, condition, *how, methods=[kept])
            made[some] = last.f_hat.half().cpu()
    return made


def train_decoder(args: argparse.Namespace) -> None:
    """Fine-tune the decoder on real pictures' bits, and where the transformer drew the last maps.

    So it learns to show what the transformer means, as for both the target is the picture.
    """
    device = torch.device(args.device)
    tokenizer = load_vae(args.folder / "vae.safetensors", device)
    judge, _ = read_judge(args.judge)
    run = Sharpening(tokenizer, judge.to(device), args.folder / "decoder.ckpt", args.steps)
    known = included.prompts(args.models / "text_encoder.safetensors")
    path = args.folder / "plain.pt"
    data, features = pictures_of(load(args.data), known, tokenizer, path)
    prompts = [data.concepts[concept].prompt for concept in data.concept.tolist()]
    files = [args.models / f"{name}.safetensors" for name in ("transformer", "text_encoder")]
    made_of = (features, *(file.read_bytes() for file in files))
    make = partial(redrawn, args.models, tokenizer, features, prompts)
    drawn = kept(args.folder / "redrawn.pt", made_of, make)
    pictures, log, schedule = Pictures(args.data, args.full), Log(every=20), square(SIDES)
    shown = torch.arange(24) * (len(drawn) // 24)
    order = batches(len(drawn), args.batch // 2, SEED, run.step)
    while run.step < args.steps:
        places = next(order)
        batch = pictures.batch(run.step, args.batch - len(places))
        with torch.no_grad(), autocast(device):
            seen = tokenizer.encoder(to_model(batch.to(device))).float()
        exact = summed(tokenizer, tokenizer.quantize_maps(seen, schedule), schedule)
        right = torch.cat((batch, data.pictures[places])).to(device)
        weight = F.interpolate(spots(right)[:, None], size=right.shape[1:3], mode="bilinear")
        right = to_model(right).contiguous(memory_format=torch.channels_last)
        f_hat = torch.cat((exact, drawn[places].float().to(device)))
        log(run.step + 1, run.update(f_hat, right, weight))
        if run.save():
            right, f_hat = data.pictures[shown], drawn[shown].float().to(device)
            draw_sheet(tokenizer, (right, f_hat), args.folder / f"decoder-{run.step:05d}.png")
            write(tokenizer, args.folder)


PARTS = {"tokenizer": train_tokenizer, "transformer": train_transformer, "decoder": train_decoder}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.finer", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, default=Path("emoji-data-wide"))
    parser.add_argument("--full", type=Path, default=Path("emoji-data-full"))
    parser.add_argument("--models", type=Path, default=Path("models/emoji-small"), help="the start")
    parser.add_argument("--judge", type=Path, default=Path("tests/judge.safetensors"))
    parser.add_argument("--folder", type=Path, default=Path("finer-training"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8, help="pictures in a step of all maps")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--export", type=Path, help="only write transformer and text encoder here")
    args = parser.parse_args()
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
