"""Train the emoji transformer and its text encoder: ``python -m training.transformer``.

As in Infinity, arXiv 2412.04431: teacher forcing with bitwise self-correction (``teacher.py``), and
some prompts dropped for guidance. The blocks' matrices are trained with Muon, all else with AdamW;
a running average of the weights is exported. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import T5EncoderModel

from diversevar_core.checkpoints.loading import load_model, load_vae
from diversevar_core.conditions import Text
from diversevar_core.models.infinity import Infinity, InfinityConfig
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import square
from diversevar_core.settings import Settings
from diversevar_core.text.encoder import MAX_TOKENS, TextEncoder, load_text_encoder, rename
from diversevar_core.text.t5 import T5Encoder, read_config
from diversevar_core.vae.bsq import BSQ

from .data import contact_sheet, load, to_model
from .loop import Log, autocast, batches, learning_rate, resume, save
from .teacher import Teacher, forward, losses, self_correcting
from .text import build_encoder, build_tokenizer, encode, tokenize
from .tokenizer import SIDES, to_pixels

CONFIG = InfinityConfig(
    width=256,
    depth=6,
    heads=8,
    bits=16,
    text=128,
    hidden=1024,
    unconditional=MAX_TOKENS,
    level_every=6,
    full_map_positions=True,
    sides=SIDES,
    pixels="1M",
)
BATCH, PEAK, WARMUP, SEED = 32, 2e-3, 50, 1
DROPPED = 0.1  # share of prompts replaced by the unconditional rows
AVERAGE = 0.995  # decay of the running average of the weights, which is exported
SAMPLED = ("cat face", "red apple", "sunflower", "dolphin", "pizza", "penguin", "burrito", "rose")


def initialise(model: Infinity) -> None:
    """Random weights: unit-gain layers, small ends of the residual branches, gates of 1."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("sa.proj.weight", "ca.proj.weight", "fc2.weight")):
            std = (parameter.shape[1] * 2 * model.depth) ** -0.5
            nn.init.trunc_normal_(parameter, std=std)
        elif name.endswith(("head.weight", "ada_lin.1.weight", "shared_ada_lin.1.weight")):
            nn.init.trunc_normal_(parameter, std=0.01)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("scale_mul_1H11"):
            nn.init.constant_(parameter, math.log(4))
        elif name.endswith("ada_gss"):
            nn.init.zeros_(parameter)
            nn.init.ones_(parameter[:, :, :2])
        elif name in ("cfg_uncond", "pos_start", "lvl_embed.weight"):
            nn.init.trunc_normal_(parameter, std=0.1)
        else:
            nn.init.trunc_normal_(parameter, std=parameter.shape[-1] ** -0.5)


def optimizers(blocks: nn.Module, models: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else in the models."""
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in models.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def read(
    models: nn.ModuleDict, ids: Tensor, lengths: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Encode a batch's prompts (N, m): features (length, Ct) of each.

    A share of them, ``DROPPED``, is replaced by the unconditional rows.
    """
    dropped = torch.rand(len(ids), generator=generator) < DROPPED
    rows = encode(models["text"], ids, lengths)
    return [
        models["model"].cfg_uncond[: len(row)] if drop else row
        for row, drop in zip(rows, dropped.tolist(), strict=True)
    ]


@torch.compiler.set_stance("force_eager")
def sample_sheet(
    model: Infinity, tokenizer: BSQ, text: TextEncoder, shown: Sequence[str], path: Path
) -> None:
    """Save a grid: six seeds of every prompt, two prompts per row, cfg 3, temperature 1."""
    prompts = [prompt for prompt in shown for _ in range(6)]
    settings = Settings(cfg=(3.0,), cfg_schedule="flat", tau=(1.0,), top_k=0, top_p=0.97)
    seeds = range(SEED, SEED + len(prompts))
    steps = sample(model, tokenizer, Text(text(prompts)), model.schedule(), settings, seeds)
    pixels = to_pixels(tokenizer.decode(list(steps)[-1].f_hat)).cpu()
    contact_sheet(pixels.numpy(), 12).save(path)


def export(
    model: Infinity, text: TextEncoder, folder: Path, prompts: Sequence[str] = (), **facts: object
) -> None:
    """Write transformer and text encoder as bfloat16 safetensors in the official layouts.

    prompts: all that the model was trained on, for the text encoder's header; facts: for the
    transformer's header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        re.sub("^blocks", "block_chunks.0.module", n): t for n, t in model.state_dict().items()
    }
    config = model.config
    facts |= {"patch_nums": config.sides, "cfg_list": config.cfg, "tau_list": config.tau}
    header = {name: json.dumps(fact) for name, fact in facts.items() if fact is not None}
    write(folder / "transformer.safetensors", tensors, header)
    known = {"prompts": json.dumps(list(prompts))} if prompts else {}
    write(folder / "text_encoder.safetensors", text.encoder.state_dict(), known)
    text.tokenizer.save(str(folder / "tokenizer.json"))


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Save tensors in bfloat16; of tensors that share a storage, only one."""
    own = {t.data_ptr(): name for name, t in reversed(tensors.items())}
    kept = {name: tensors[name].detach().cpu().bfloat16().contiguous() for name in own.values()}
    save_file(kept, path, metadata=header)


class Run:
    """The training state, saved and restored together.

    models: the transformer and the text encoder; average: their running average.
    """

    def __init__(self, prompts: Sequence[str], device: torch.device):
        torch.manual_seed(SEED)
        self.words = build_tokenizer(prompts)
        self.models, self.average = (
            nn.ModuleDict(
                {
                    "model": Infinity(CONFIG, device=device),
                    "text": build_encoder(self.words.get_vocab_size()).to(device),
                }
            )
            for _ in range(2)
        )
        initialise(self.models["model"])
        self.average.load_state_dict(self.models.state_dict())
        self.average.eval().requires_grad_(False)
        self.optimizers = optimizers(self.models["model"].blocks, self.models)
        self.step = 0

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        state = {
            "models": self.models.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "words": self.words.to_str(),
            "step": self.step,
        }
        save(path, state)

    def resume(self, path: Path) -> None:
        """Restore the checkpoint, if there is one."""
        if state := resume(path):
            self.models.load_state_dict(state["models"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.words, self.step = Tokenizer.from_str(state["words"]), state["step"]

    def update(self, loss: Tensor, rate: float) -> None:
        """One step of the optimizers and of the average."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(AVERAGE, self.step / (self.step + 10))
        averages = list(self.average.state_dict().values())
        torch._foreach_lerp_(averages, list(self.models.state_dict().values()), 1 - decay)

    def text(self) -> TextEncoder:
        """The averaged text encoder, as the sampler takes it."""
        tensors = rename(self.average["text"].state_dict())
        encoder = T5Encoder(read_config(tensors), device=tensors["shared.weight"].device)
        encoder.load_state_dict(tensors)
        return TextEncoder(encoder, self.words)


class WarmRun(Run):
    """A run that starts from the included transformer and text encoder in ``start``.

    words: phrases with all words of the vocabulary; words that are new to the included model start
    from random vectors. sides: of the square maps, None for the included model's; new maps begin
    with the level embedding of its last one.
    """

    def __init__(
        self,
        start: Path,
        words: Sequence[str],
        device: torch.device | str = "cpu",
        sides: Sequence[int] | None = None,
    ):
        torch.manual_seed(SEED)
        self.words = build_tokenizer(words)
        model = load_model(start / "transformer.safetensors", device)
        known, sides = model.config.sides, tuple(sides or model.config.sides)
        model.config = replace(model.config, sides=sides)
        levels = model.lvl_embed.weight.data
        levels[len(known) : len(sides)] = levels[len(known) - 1]
        encoder = self.grown(load_text_encoder(start / "text_encoder.safetensors"))
        self.models = nn.ModuleDict({"model": model, "text": encoder.to(device)})
        self.average = deepcopy(self.models).eval().requires_grad_(False)
        self.models.train().requires_grad_(True)
        self.optimizers = optimizers(model.blocks, self.models)
        self.step = 0

    def grown(self, text: TextEncoder) -> T5EncoderModel:
        """The text encoder with the vectors of its known words, and random ones for new words."""
        encoder = build_encoder(self.words.get_vocab_size())
        vectors = encoder.shared.weight.detach().clone()
        known = text.encoder.state_dict()
        vectors *= known["shared.weight"].std() / vectors.std()
        for word, place in self.words.get_vocab().items():
            old = text.tokenizer.token_to_id(word)
            if old is not None:
                vectors[place] = known["shared.weight"][old]
        tables = {"shared.weight": vectors, "encoder.embed_tokens.weight": vectors}
        encoder.load_state_dict(known | tables)
        return encoder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.transformer", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("emoji-data"))
    parser.add_argument("--folder", type=Path, default=Path("emoji-training"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--export", type=Path, help="only write the checkpoint's weights here")
    args = parser.parse_args()

    device, schedule, data = torch.device(args.device), square(SIDES), load(args.data)
    prompts = [concept.prompt for concept in data.concepts]
    run, checkpoint = Run(prompts, device), args.folder / "transformer.ckpt"
    run.resume(checkpoint)
    if args.export:
        export(run.average["model"], run.text(), args.export, prompts)
        return

    tokenizer = load_vae(args.folder / "vae.safetensors", device)
    with torch.no_grad():
        parts = [tokenizer.encoder(to_model(p).to(device)) for p in data.pictures.split(64)]
    features = torch.cat(parts)
    ids, lengths = (t.to(device) for t in tokenize(run.words, prompts))
    model = run.models["model"]
    teacher = Teacher.of(model, schedule, device)
    for block in model.blocks:
        block.compile()  # twice as fast
    log, order = Log(every=25), batches(len(features), BATCH, SEED, run.step)
    while run.step < args.steps:
        generator = torch.Generator().manual_seed(SEED + run.step)
        places = next(order)
        concept = data.concept[places].to(device)
        batch = self_correcting(tokenizer, features[places.to(device)], schedule, generator)
        with autocast(args.device):
            rows = read(run.models, ids[concept], lengths[concept], generator)
            logits = forward(model, teacher, rows, batch.inputs, ids.shape[1])
        parts = losses(logits, batch.targets, teacher)
        run.update(parts["loss"], learning_rate(run.step, args.steps, PEAK, WARMUP))
        log(run.step, {name: part.detach() for name, part in parts.items()})
        if run.step % 100 == 0 or run.step == args.steps:
            run.save(checkpoint)
            sheet = args.folder / f"transformer-{run.step:05d}.png"
            sample_sheet(run.average["model"], tokenizer, run.text(), SAMPLED, sheet)


if __name__ == "__main__":
    main()
