"""Train a small SD3 on the emoji: ``python -m training.flow --comfyui ComfyUI``.

A diffusion model that stock ComfyUI nodes load, for what the pack says of other models. Rectified
flow as in Stable Diffusion 3, arXiv 2403.03206: ComfyUI's own transformer, the text
encoder of emoji-small, and what its VAE decodes. Resumes from its checkpoint, and ends with
``flow.safetensors``, for ComfyUI's ``models/checkpoints`` or ``diffusion_models``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from diversevar_core.checkpoints import included
from diversevar_core.checkpoints.loading import load_vae
from diversevar_core.schedule import square
from diversevar_core.text.encoder import load_text_encoder
from diversevar_core.vae.bsq import BSQ

from .data import contact_sheet, load, to_model
from .loop import Log, autocast, learning_rate
from .tokenizer import SIDES, summed, to_pixels
from .transformer import DROPPED, SAMPLED, Run, optimizers

DEPTH = 3  # blocks, of width 64 * depth: ComfyUI reads both off the file
SCALE, SHIFT = 1.5305, 0.0609  # of SD3's latents in ComfyUI (comfy/latent_formats.py)
BATCH, PEAK, WARMUP, SEED = 64, 2e-3, 100, 1
STEPS, CFG = 8, 4.0  # of the sheets, by Euler's method


def build(comfyui: Path) -> nn.Module:
    """ComfyUI's SD3 transformer; every block starts as the identity (adaLN-Zero)."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True  # its default on a CPU is slow to train
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    text = {"target": "torch.nn.Linear", "params": {"in_features": 128, "out_features": 64 * DEPTH}}
    model = OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,  # with any other its positions do not fit
        in_channels=16,
        depth=DEPTH,
        qk_norm="rms",
        context_embedder_config=text,
        dtype=torch.float32,
        operations=nn,
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("ln_q.weight", "ln_k.weight")):
            nn.init.ones_(parameter)
        elif "adaLN" in name or "final_layer.linear" in name or name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


class FlowRun(Run):
    """The training state; words: the text encoder's, which stay."""

    def __init__(self, model: nn.Module, words: Tokenizer):
        self.words, self.models = words, nn.ModuleDict({"model": model})
        self.average = deepcopy(self.models).eval().requires_grad_(False)
        self.optimizers = optimizers(model.joint_blocks, self.models)
        self.step = 0


@torch.no_grad()
def sheet(model: nn.Module, vae: BSQ, texts: Sequence[Tensor], nothing: Tensor, path: Path) -> None:
    """Save a grid: six seeds of every text (1, length, 128), two texts per row."""
    generator, made = torch.Generator().manual_seed(SEED), []
    for text in texts:
        x = torch.randn(6, 16, 8, 8, generator=generator)
        for step in range(STEPS):
            time = torch.full((6,), 1000 * (1 - step / STEPS))
            plain = model(x, time, context=nothing.expand(6, -1, -1))
            guided = plain + CFG * (model(x, time, context=text.expand(6, -1, -1)) - plain)
            x = x - guided / STEPS
        made.append(to_pixels(vae.decode(x / SCALE + SHIFT)))
    contact_sheet(torch.cat(made).numpy(), 12).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.flow", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--folder", type=Path, default=Path("flow-training"))
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()

    small = included.FOLDER / "emoji-small"
    data, vae = load(args.data), load_vae(small / "vae.safetensors")
    encoder = load_text_encoder(small / "text_encoder.safetensors")
    prompts = [concept.prompt for concept in data.concepts]
    with torch.no_grad():
        features = torch.cat([vae.features(to_model(p)) for p in data.pictures.split(64)])
        bits = vae.quantize_maps(features, square(SIDES))
        latents = (summed(vae, bits, square(SIDES)) - SHIFT) * SCALE
        ids = [torch.tensor([encoder.tokenizer.encode(text).ids]) for text in (*prompts, "")]
        *texts, nothing = [encoder.encoder(row) for row in ids]  # (1, length, 128) each
    lengths = torch.tensor([text.shape[1] for text in texts])[data.concept]

    torch.manual_seed(SEED)
    run, checkpoint = FlowRun(build(args.comfyui), encoder.tokenizer), args.folder / "flow.ckpt"
    run.resume(checkpoint)
    model, average = run.models["model"], run.average["model"]
    log = Log(every=50)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        # a batch's prompts are as long as each other, or all dropped: the transformer has no mask,
        # and ComfyUI does not pad what this text encoder reads
        length = lengths[torch.randint(len(lengths), (), generator=generator)]
        places = (lengths == length).nonzero().squeeze(1)
        places = places[torch.randint(len(places), (BATCH,), generator=generator)]
        text = torch.cat([texts[concept] for concept in data.concept[places]])
        if torch.rand((), generator=generator) < DROPPED:
            text = nothing.expand(BATCH, -1, -1)
        image, sigma = latents[places], torch.randn(BATCH, generator=generator).sigmoid()
        noise = torch.randn(image.shape, generator=generator)
        mixed = torch.lerp(image, noise, sigma[:, None, None, None])
        with autocast():
            velocity = model(mixed, 1000 * sigma, context=text)
        error = (velocity - (noise - image)).square().mean()
        run.update(error, learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {"error": error.detach()})
        if run.step % 250 == 0 or run.step == args.steps:
            run.save(checkpoint)
            shown = [texts[prompts.index(prompt)] for prompt in SAMPLED]
            sheet(average, vae, shown, nothing, args.folder / f"flow-{run.step:05d}.png")
    weights = {
        name: weight.to(torch.float8_e4m3fn if weight.ndim == 2 else torch.bfloat16)
        for name, weight in average.state_dict().items()
    }
    known = {"prompts": json.dumps(prompts)}
    save_file(weights, args.folder / "flow.safetensors", metadata=known)


if __name__ == "__main__":
    main()
