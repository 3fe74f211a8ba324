"""Grow the emoji tokenizer from 64 to 128 pixels with the same bits: ``python -m training.sharp``.

Encoder and decoder get one more level at full resolution, so the stride is 16 as Infinity's.
``encoder`` is trained to give a picture the features that the smaller tokenizer gives the picture
at half size. ``decoder`` is trained for sharp pictures, as latent diffusion's (arXiv 2112.10752):
errors of pixels, edges and a classifier's features, and later a patch discriminator (hinge loss).
Its inputs are real pictures' bits, with some of them flipped, and pictures that the transformer
draws, for which only the discriminator counts. Both resume from their checkpoints.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import square
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.autoencoder import ResnetBlock
from diversevar_core.vae.bsq import BSQ

from .data import contact_sheet, halved, load, to_model, with_mirrored
from .judge import Judge, load_judge
from .loop import Log, autocast, batches, learning_rate, resume, save
from .teacher import self_correcting
from .tokenizer import SIDES, differences, initialise, psnr, summed, to_pixels

BATCH, PEAK, WARMUP, SEED = 8, 1e-3, 50, 3
ENCODER_PEAK = 5e-4
KNOWN = 0.75  # share of the pictures that show what the transformer knows
FLIPPED = 0.1  # largest share of flipped bits, in every second picture
PERCEPTUAL, EDGES = 1.0, 1.0
# shares of the steps after which the critic learns, acts on the decoder, and acts fully
LEARNS, SAYS, WHOLLY = 0.37, 0.45, 0.53
CRITIC = 0.3  # size of its gradient at the end, relative to that of the other errors
CRITIC_RATE = 1e-3
DRAWN = 2  # pictures of a batch that the transformer draws, while the critic learns
JUDGE_STEPS = 1300
HALF = Path("emoji-training/half/vae.safetensors")
LEVEL = re.compile(r"(?<=down\.|.\.up\.)\d+")


def grown(half: BSQ) -> BSQ:
    """A tokenizer with one more level, initialised to be nearly ``half`` at twice the resolution.

    Its decoder doubles the pixels of ``half``'s output. Its encoder averages 2 x 2 pixels; of the
    six rows and columns that ``half``'s first convolution would then need, only five are in reach,
    so the second one is also used for the first.
    """
    config = half.config
    channels = (config.channels[0], *config.channels)
    tokenizer = BSQ(replace(config, channels=channels, halvings=config.halvings + 1))
    initialise(tokenizer)
    deeper = {LEVEL.sub(lambda n: str(int(n[0]) + 1), k): v for k, v in half.state_dict().items()}
    tokenizer.load_state_dict(deeper, strict=False)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    with torch.no_grad():
        for block in (*encoder.down[0].block, *decoder.up[0].block):
            block.conv2.weight.zero_()
        nn.init.dirac_(decoder.up[1].upsample.conv.weight)
        encoder.conv_in.weight.zero_()
        encoder.conv_in.bias.zero_()
        # channel (c, y, x) of the first 27 is colour c at place y, x under the kernel
        encoder.conv_in.weight[:27] = torch.eye(27).view(27, 3, 3, 3)
        encoder.down[0].downsample.conv.weight.zero_()
        encoder.down[0].downsample.conv.bias.copy_(half.encoder.conv_in.bias)
        kernel = averaging(half.encoder.conv_in.weight)
        reached = encoder.down[0].downsample.conv.weight[:, :27].view(-1, 3, 3, 3, 3, 3)
        for i, (y, row) in enumerate(PLACES):
            for j, (x, column) in enumerate(PLACES):
                reached[:, :, y, x, row, column] = kernel[:, :, i, j]
    return tokenizer


PLACES = ((0, 0), (1, 0), (1, 1), (1, 2), (2, 2))  # of 5: under the first kernel, and the second


def averaging(weight: Tensor) -> Tensor:
    """A kernel (out, in, 3, 3) for halved pictures -> a similar one for whole ones, (..., 5, 5)."""
    rows = torch.tensor([[1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0.5, 0.5]])
    return torch.einsum("oiyx,yh,xw->oihw", weight, rows, rows)


class Critic(nn.Sequential):
    """Pictures (B, 3, H, W) -> how real each patch looks, (B, 1, H / 8, W / 8)."""

    def __init__(self) -> None:
        layers, widths = [], (3, 32, 64, 128)
        for before, width in zip(widths, widths[1:], strict=False):
            layers.append(nn.Conv2d(before, width, 4, stride=2, padding=1))
            layers += [nn.GroupNorm(8, width)] if before > 3 else []
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def perceptual(judge: Judge, made: Tensor, pictures: Tensor) -> Tensor:
    """Squared distance of the unit features of both (B, 3, H, W), the mean over the stages."""
    with torch.no_grad():
        real = judge.maps(pictures)
    pairs = zip(judge.maps(made), real, strict=True)
    apart = [(F.normalize(a.float()) - F.normalize(b.float())).square() for a, b in pairs]
    return torch.stack([one.sum(dim=1).mean() for one in apart]).mean()


def errors(
    judge: Judge, made: Tensor, pictures: Tensor, weight: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """The loss and its parts; made: decoded pictures, pictures: the targets, (B, 3, H, W).

    weight: (B, 1, H, W), of an error of a pixel's colour.
    """
    pairs = zip(differences(made), differences(pictures), strict=True)
    apart = made - pictures
    parts = {
        "l1": (weight * apart.abs()).mean(),
        "mse": (weight * apart.square()).mean(),
        "edges": sum(F.l1_loss(a, b) for a, b in pairs),
        "perceptual": perceptual(judge, made, pictures),
    }
    loss = parts["l1"] + parts["mse"] + EDGES * parts["edges"] + PERCEPTUAL * parts["perceptual"]
    return {"loss": loss} | parts


def criticised(critic: Critic, made: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Add the critic's gradient for ``made`` (B, 3, H, W) to the errors' gradient (n, 3, H, W).

    It is scaled so that on the first n pictures its norm is ``share`` times the errors'.
    """
    n = len(gradient)
    (wish,) = torch.autograd.grad(-critic(made).float().mean(), made)
    wish = wish * share * gradient.norm() / wish[:n].norm().clamp(min=1e-12)
    return wish + F.pad(gradient, (0, 0) * 3 + (0, len(made) - n))


@torch.no_grad()
def drawn_by(models: Path, prompts: Sequence[str], tokenizer: BSQ, path: Path) -> Tensor:
    """f_hat (N, d, 8, 8) float16 of pictures that the transformer draws, three per prompt.

    Every second prompt has guidance_start 4. They are saved at ``path``, and drawn only once.
    """
    if not path.exists():
        model = load_model(models / "transformer.safetensors")
        text = load_text_encoder(models / "text_encoder.safetensors")
        text.known = None  # prompts that it does not list are drawn too
        found = []
        for i, prompt in enumerate(prompts):
            settings = Settings((4.0,), "flat", (0.5,), 0, 0.97, guidance_start=4 * (i % 2))
            seeds = range(SEED + 3 * i, SEED + 3 * i + 3)
            rows = Text(text([prompt])).repeat(len(seeds))
            *_, last = sample(model, tokenizer, rows, model.schedule(), settings, seeds)
            found.append(last.f_hat.half())
        torch.save(torch.cat(found), path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def reread(half: BSQ, pictures: Tensor) -> Tensor:
    """uint8 pictures (B, H, W, 3) -> the sum of their maps (B, d, h, w)."""
    schedule = square(SIDES)
    features = half.features(to_model(halved(pictures)))
    return summed(half, half.quantize_maps(features, schedule), schedule)


class Pictures:
    """Batches of real pictures, a share of them of what the transformer knows."""

    def __init__(self, known: Path, full: Path):
        self.sets = [with_mirrored(load(folder)).pictures for folder in (known, full)]

    def batch(self, step: int, size: int = BATCH) -> Tensor:
        """(size, H, W, 3) uint8."""
        sizes = round(size * KNOWN), size - round(size * KNOWN)
        pairs = zip(self.sets, sizes, strict=True)
        return torch.cat([one[next(batches(len(one), n, SEED, step))] for one, n in pairs])


def compiled(tokenizer: BSQ) -> BSQ:
    """The tokenizer with compiled residual blocks and channels-last weights, for speed."""
    torch._dynamo.config.recompile_limit = 32  # the blocks of all levels share it
    for module in tokenizer.modules():
        if isinstance(module, ResnetBlock):
            module.compile()
    return tokenizer.to(memory_format=torch.channels_last)


def parts(args: argparse.Namespace) -> tuple[BSQ, BSQ]:
    """The tokenizer of halved pictures, and the grown one with its checkpoints."""
    half = load_vae(args.half)
    tokenizer = grown(half)
    for part in ("encoder", "decoder"):
        if state := resume(args.folder / f"{part}.ckpt"):
            tokenizer.get_submodule(part).load_state_dict(state["module"])
    return half, tokenizer


def write(tokenizer: BSQ, folder: Path) -> None:
    """Write vae.safetensors in bfloat16."""
    tensors = {name: t.bfloat16().contiguous() for name, t in tokenizer.state_dict().items()}
    save_file(tensors, folder / "vae.safetensors")


def train_encoder(args: argparse.Namespace) -> None:
    """Train the encoder's new level only; the deeper levels do not change."""
    half, tokenizer = parts(args)
    checkpoint, encoder = args.folder / "encoder.ckpt", compiled(tokenizer).encoder
    fresh = nn.ModuleList((encoder.conv_in, encoder.down[0])).requires_grad_(True)
    optimizer = torch.optim.AdamW(fresh.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    state = resume(checkpoint) or {"step": 0}
    if state["step"]:
        optimizer.load_state_dict(state["optimizer"])
    pictures, log = Pictures(args.data, args.full), Log(every=20)
    for step in range(state["step"], args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, ENCODER_PEAK, WARMUP)
        batch = pictures.batch(step)
        wanted = half.features(to_model(halved(batch)))
        with autocast():
            features = encoder(to_model(batch)).float()
        loss = F.mse_loss(features, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bits = ((features > 0) == (wanted > 0)).float().mean()
        log(step + 1, {"loss": loss.detach(), "signs": bits})
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            state = {"module": encoder.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, state | {"step": step + 1})
    write(tokenizer, args.folder)


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def draw_sheet(tokenizer: BSQ, shown: tuple[Tensor, Tensor], path: Path) -> None:
    """Save a grid: pictures (24, H, W, 3), and what is decoded from f_hat (48, d, h, w)."""
    right, f_hat = shown
    made = to_pixels(tokenizer.decode(f_hat))
    rows = zip(right.split(12), made[: len(right)].split(12), strict=True)
    sheet = torch.cat((*(part for pair in rows for part in pair), made[len(right) :]))
    contact_sheet(sheet.numpy(), 12).save(path)
    print(f"PSNR {psnr(made[: len(right)], right).mean():.2f} dB", flush=True)


class Sharpening:
    """Training of a decoder with a critic of its pictures; resumes from ``checkpoint``."""

    def __init__(self, tokenizer: BSQ, judge: Judge, checkpoint: Path, steps: int):
        torch.manual_seed(SEED)
        self.judge, self.checkpoint, self.steps, self.step = judge, checkpoint, steps, 0
        self.judge.requires_grad_(False)
        self.decoder = compiled(tokenizer).decoder.requires_grad_(True)
        device = self.decoder.conv_in.weight.device
        self.critic = Critic().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.decoder.parameters(), betas=(0.9, 0.95), weight_decay=0.01
        )
        self.judging = torch.optim.Adam(self.critic.parameters(), CRITIC_RATE, betas=(0.5, 0.9))
        if state := resume(checkpoint):
            self.step = state.pop("step")
            for name, saved in state.items():
                self.parts()[name].load_state_dict(saved)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint has, besides the step."""
        return {
            "module": self.decoder,
            "critic": self.critic,
            "optimizer": self.optimizer,
            "judging": self.judging,
        }

    @property
    def criticises(self) -> bool:
        """Whether the critic learns by now."""
        return self.step / self.steps >= LEARNS

    def update(
        self, f_hat: Tensor, right: Tensor, weight: Tensor | float = 1.0
    ) -> dict[str, Tensor]:
        """One step on the sums of maps f_hat (B, d, h, w); returns the parts of the loss.

        right: the pictures (n, 3, H, W) of the first n; for the others only the critic counts.
        weight: as ``errors`` takes it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, PEAK, WARMUP)
        with autocast(right.device):
            decoded = self.decoder(f_hat).float()
            made = decoded.detach().requires_grad_()
            found = errors(self.judge, made[: len(right)], right, weight)
            (gradient,) = torch.autograd.grad(found["loss"], made)
            if self.criticises:
                share = CRITIC * (self.step / self.steps - SAYS) / (WHOLLY - SAYS)
                gradient = criticised(self.critic, made, gradient, min(max(share, 0.0), CRITIC))
        self.optimizer.zero_grad(set_to_none=True)
        decoded.backward(gradient)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        if self.criticises:
            with autocast(right.device):
                real, fake = self.critic(right).float(), self.critic(made.detach()).float()
            fooled = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            self.judging.zero_grad(set_to_none=True)
            fooled.backward()
            self.judging.step()
            found["critic"] = fooled
        self.step += 1
        return {name: part.detach() for name, part in found.items()}

    def save(self) -> bool:
        """Write the checkpoint after every 100 steps and the last; whether it did."""
        due = self.step % 100 == 0 or self.step == self.steps
        if due:
            state = {name: part.state_dict() for name, part in self.parts().items()}
            save(self.checkpoint, state | {"step": self.step})
        return due


def train_decoder(args: argparse.Namespace) -> None:
    """Train the decoder on real pictures' bits, and on what the transformer draws."""
    half, tokenizer = parts(args)
    judge = load_judge(load(args.full), args.folder / "judge-full.ckpt", JUDGE_STEPS)
    prompts = [concept.prompt for concept in load(args.data).concepts]
    drawn = drawn_by(args.models, prompts, half, args.folder / f"drawn-{args.data.name}.pt")
    run = Sharpening(tokenizer, judge, args.folder / "decoder.ckpt", args.steps)
    pictures, schedule, log = Pictures(args.data, args.full), square(SIDES), Log(every=20)
    right = torch.cat([one[:: len(one) // 12][:12] for one in pictures.sets])
    shown = right, torch.cat((reread(half, right), drawn[:: len(drawn) // 24][:24].float()))
    while run.step < args.steps:
        batch = pictures.batch(run.step)[: BATCH - DRAWN if run.criticises else BATCH]
        generator = torch.Generator().manual_seed(SEED + run.step)
        with torch.no_grad(), autocast():
            features = half.encoder(to_model(halved(batch))).float()
        seen = [
            self_correcting(half, rows, schedule, generator, share).f_hat
            for rows, share in ((features[::2], 0.0), (features[1::2], FLIPPED))
        ]
        right = to_model(torch.cat((batch[::2], batch[1::2])))
        right = right.contiguous(memory_format=torch.channels_last)
        if run.criticises:
            places = torch.randint(len(drawn), (DRAWN,), generator=generator)
            seen.append(drawn[places].float())
        log(run.step + 1, run.update(torch.cat(seen), right))
        if run.save():
            draw_sheet(tokenizer, shown, args.folder / f"decoder-{run.step:05d}.png")
    write(tokenizer, args.folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sharp", description=__doc__)
    parser.add_argument("part", choices=("encoder", "decoder"))
    parser.add_argument("--data", type=Path, default=Path("emoji-data-grown"))
    parser.add_argument("--full", type=Path, default=Path("emoji-data-full"))
    parser.add_argument("--half", type=Path, default=Path("emoji-training/half/vae.safetensors"))
    parser.add_argument(
        "--models", type=Path, default=Path("models/emoji-small"), help="what draws"
    )
    parser.add_argument("--folder", type=Path, default=Path("emoji-training"))
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()
    {"encoder": train_encoder, "decoder": train_decoder}[args.part](args)


if __name__ == "__main__":
    main()
