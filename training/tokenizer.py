"""Train the emoji tokenizer, a small version of Infinity's: ``python -m training.tokenizer``.

Infinity, arXiv 2412.04431, section 3.2, and BSQ, arXiv 2406.07548: straight-through signs on a
pyramid of residuals; the loss has a commitment and an entropy term, the absolute and squared error
of pixels, and the error of differences between neighbouring pixels. It trains on pictures of 64
pixels; ``sharp.py`` doubles them. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diversevar_core.resize import area
from diversevar_core.schedule import Schedule, square
from diversevar_core.vae.autoencoder import AutoencoderConfig, ResnetBlock
from diversevar_core.vae.bsq import BSQ, resize

from .data import contact_sheet, halved, load, to_model, with_mirrored
from .loop import Log, autocast, batches, learning_rate, resume, save

SIDES = (1, 2, 4, 6, 8)
CONFIG = AutoencoderConfig(channels=(32, 32, 64, 128), halvings=3, latent=16, attention=False)
BATCH, PEAK, WARMUP, SEED = 16, 2e-3, 50, 1
COMMITMENT, ENTROPY, EDGES = 0.5, 0.02, 1.0
PLAIN, QUANTIZED = 0.05, 0.25  # shares of the steps after which some and all pictures are quantized
SHARPNESS = 100.0  # inverse temperature of the soft bits in the entropy term, as in the paper


def initialise(tokenizer: BSQ) -> None:
    """Random weights: unit-gain convolutions, small ones at the ends of residual branches."""
    for name, module in tokenizer.named_modules():
        if isinstance(module, nn.Conv2d):
            std = module.weight[0].numel() ** -0.5
            nn.init.trunc_normal_(module.weight, std=0.1 * std if name.endswith("conv2") else std)
            nn.init.zeros_(module.bias)


def summed(tokenizer: BSQ, bits: list[Tensor], schedule: Schedule) -> Tensor:
    """The sum of all maps' codes, (B, d, H, W)."""
    f_hat = None
    for scale, tokens in zip(schedule, bits, strict=True):
        f_hat, _ = tokenizer.accumulate(f_hat, tokens, scale)
    return f_hat


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability p."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def entropy_term(
    tokenizer: BSQ, features: Tensor, bits: list[Tensor], schedule: Schedule
) -> Tensor:
    """Mean entropy of a bit minus the entropy of its mean over pictures.

    Low where each bit is certain, but 0 and 1 are equally frequent.
    """
    rest, terms = features, []
    for scale, tokens in zip(schedule, bits, strict=True):
        unit = F.normalize(area(rest, scale.h, scale.w), dim=1)
        p = torch.sigmoid(2 * SHARPNESS * unit / unit.shape[1] ** 0.5)
        terms.append(entropy(p).mean() - entropy(p.mean(dim=0)).mean())
        rest = rest - resize(tokenizer.codes(tokens, scale), *features.shape[-2:])
    return torch.stack(terms).mean()


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of vertical and horizontal neighbours: (B, 3, H-1, W) and (B, 3, H, W-1)."""
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def losses(
    tokenizer: BSQ, pictures: Tensor, schedule: Schedule, quantized: float
) -> dict[str, Tensor]:
    """The loss and its parts for a batch (B, 3, H, W) in -1..1.

    quantized: share of the pictures that are quantized for the decoder. The others keep it from
    converging to the mean picture at the start.
    """
    features = tokenizer.encoder(pictures).float()
    bits = tokenizer.quantize_maps(features.detach(), schedule)
    f_hat = summed(tokenizer, bits, schedule)
    through = torch.rand(len(features), 1, 1, 1, device=features.device) < quantized
    seen = features + through * (f_hat - features).detach()  # straight through
    made = tokenizer.decode(seen).float()
    colour = F.l1_loss(made, pictures)
    edges = sum(
        F.l1_loss(a, b) for a, b in zip(differences(made), differences(pictures), strict=True)
    )
    commitment = F.mse_loss(features, f_hat)
    undecided = entropy_term(tokenizer, features, bits, schedule)
    squared = F.mse_loss(made, pictures)
    total = (
        colour + squared + EDGES * edges + quantized * COMMITMENT * commitment + ENTROPY * undecided
    )
    return {
        "loss": total,
        "l1": colour,
        "edges": edges,
        "commitment": commitment,
        "entropy": undecided,
        "mse": squared,
    }


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def reconstruct(tokenizer: BSQ, pictures: Tensor, schedule: Schedule) -> Tensor:
    """Pictures (B, 3, H, W) through bits and back."""
    bits = tokenizer.quantize_maps(tokenizer.features(pictures), schedule)
    return tokenizer.decode(summed(tokenizer, bits, schedule))


def rebuilt(tokenizer: BSQ, pictures: Tensor, schedule: Schedule) -> Tensor:
    """uint8 pictures (N, H, W, 3) through bits and back, 64 at a time."""
    parts = pictures.split(64)
    return torch.cat([to_pixels(reconstruct(tokenizer, to_model(p), schedule)) for p in parts])


def to_pixels(made: Tensor) -> Tensor:
    """(B, 3, H, W) in about -1..1 -> (B, H, W, 3) uint8."""
    return ((made.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def psnr(made: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of uint8 pictures."""
    error = (made.float() - pictures.float()).square().flatten(1).mean(dim=1)
    return 10 * (255.0**2 / error.clamp(min=1e-6)).log10()


def fit(
    tokenizer: BSQ,
    pictures_at: Callable[[int], Tensor],
    shown: Tensor,
    schedule: Schedule,
    folder: Path,
    steps: int,
    ramp: tuple[float, float],
) -> None:
    """Train up to ``steps``, from the folder's checkpoint if any; write vae.safetensors.

    pictures_at: step -> a batch (B, H, W, 3) uint8. shown: a multiple of 12 pictures, whose
    reconstructions are saved. ramp: shares of the steps after which some and all pictures are
    quantized.
    """
    device = next(tokenizer.parameters()).device
    for module in tokenizer.modules():
        if isinstance(module, ResnetBlock):
            module.compile()  # 2.5 times as fast
    optimizer = torch.optim.AdamW(tokenizer.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    checkpoint, done = folder / "tokenizer.ckpt", 0
    if state := resume(checkpoint):
        tokenizer.load_state_dict(state["tokenizer"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    log, (some, every) = Log(every=50), ramp
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK, WARMUP)
        pictures = to_model(pictures_at(step)).to(device)
        with autocast(device):
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            quantized = (step / steps - some) / (every - some)
            parts = losses(tokenizer, pictures, schedule, min(max(quantized, 0.0), 1.0))
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        log(step + 1, {name: part.detach() for name, part in parts.items()})
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"tokenizer": tokenizer.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, state | {"step": step + 1})
            made = to_pixels(reconstruct(tokenizer, to_model(shown).to(device), schedule)).cpu()
            print(f"PSNR {psnr(made, shown).mean():.2f} dB", flush=True)
            rows = torch.stack((shown.unflatten(0, (-1, 12)), made.unflatten(0, (-1, 12))), dim=1)
            contact_sheet(rows.flatten(0, 2).numpy(), 12).save(folder / "tokenizer.png")
    tensors = {name: t.bfloat16().contiguous() for name, t in tokenizer.state_dict().items()}
    save_file(tensors, folder / "vae.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tokenizer", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--folder", type=Path, default=Path("emoji-training/half"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--freeze-encoder",
        action="store_true",
        help="train the decoder only: bits stay as they are",
    )
    args = parser.parse_args()

    data = with_mirrored(load(args.data))
    torch.manual_seed(SEED)
    tokenizer = BSQ(CONFIG, device=args.device).to(memory_format=torch.channels_last)
    initialise(tokenizer)
    tokenizer.encoder.requires_grad_(not args.freeze_encoder)

    def pictures_at(step: int) -> Tensor:
        return halved(data.pictures[next(batches(len(data.pictures), BATCH, SEED, step))])

    shown = halved(data.pictures[:: len(data.pictures) // 48][:48])
    ramp = (PLAIN, QUANTIZED)
    fit(tokenizer, pictures_at, shown, square(SIDES), args.folder, args.steps, ramp)


if __name__ == "__main__":
    main()
