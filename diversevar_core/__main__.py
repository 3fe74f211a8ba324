"""The command line: ``python -m diversevar_core sample --help``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import included
from .checkpoints import load_model, load_tokenizer
from .convert import DTYPES, convert
from .families.infinity import Infinity, Text
from .families.var import VAR
from .pictures import captioned_rows, read_picture, sheet, to_pil
from .sampler import Settings, Step, free_early, sample
from .schedule import PIXELS, Schedule, square
from .spectral import SITES, DiverseVAR, calibrated
from .text import load_text_encoder
from .tokenizers.autoencoder import to_image
from .tokenizers.bsq import BSQ
from .tokenizers.vqvae import VQVAE


def numbers(text: str) -> tuple[float, ...]:
    """``4,4,3`` -> (4.0, 4.0, 3.0)."""
    return tuple(float(part) for part in text.split(","))


def integers(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    return tuple(int(part) for part in text.split(","))


def aspect(text: str) -> float:
    """``4:3`` or ``1.333``, height to width."""
    height, _, width = text.partition(":")
    return float(height) / float(width or 1)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="diversevar_core", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    one = commands.add_parser("sample", help="make pictures", description="Make pictures.")
    one.set_defaults(run=run_sample)
    add_sampling_options(one)
    add_method_options(one)
    one.add_argument("--trace", type=Path, help="safetensors of every map's logits and tokens")

    both = commands.add_parser(
        "compare",
        help="the same seeds without and with diversity",
        description="Make the same seeds three times: as the model is, with DiverseVAR, and guided "
        "only from a side on.",
    )
    both.set_defaults(run=run_compare)
    add_sampling_options(both)
    both.add_argument("--diversity", type=float, default=1.0, help="strength of SSR and SAR")
    both.set_defaults(prompt="octopus", batch=8, guide_from=4)

    two = commands.add_parser("encode", help="picture -> token maps -> picture")
    two.set_defaults(run=run_encode)
    two.add_argument("--vq", required=True, help="tokenizer")
    two.add_argument("--image", required=True, help="picture file")
    two.add_argument("--sides", type=integers, required=True, help="of its maps, as in 1,2,4,6,8")
    two.add_argument("--out", type=Path, default=Path("diversevar.png"), help="the picture again")
    two.add_argument("--trace", type=Path, help="safetensors of the token maps")

    three = commands.add_parser(
        "convert",
        help="any checkpoint -> one safetensors file",
        description="Write a transformer, tokenizer or text encoder as one safetensors file, with "
        "all that loading it needs in its header.",
    )
    three.set_defaults(run=run_convert)
    three.add_argument("source", metavar="IN", help="file, or folder of shards")
    three.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    three.add_argument(
        "--dtype", choices=tuple(DTYPES), help="of the matrices (default: as stored)"
    )
    return top


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """What ``sample`` and ``compare`` take."""
    files = command.add_argument_group("models")
    files.add_argument("--model", default=included.MODEL, help="transformer: file or folder")
    files.add_argument("--vq", default=included.TOKENIZER, help="its tokenizer")
    files.add_argument(
        "--text-encoder",
        default=included.TEXT_ENCODER,
        help="T5: folder, or file with tokenizer.json beside it or in its header",
    )
    files.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    what = command.add_argument_group("what to make")
    what.add_argument("--prompt", help="text of the picture")
    what.add_argument("--negative", help="text to steer away from")
    what.add_argument("--text-features", help="safetensors with text, lens[, negative_text, ...]")
    what.add_argument("--labels", type=integers, help="class labels, as in 3,7")
    what.add_argument("--batch", type=int, help="pictures (default: one a prompt or label)")
    what.add_argument("--seed", type=int, default=0, help="picture i has seed + i (default 0)")
    what.add_argument("--rng", choices=("per-image", "shared"), default="per-image")
    what.add_argument("--aspect", type=aspect, default=1.0, help="height to width: 4:3 or 1.333")
    what.add_argument("--pixels", choices=tuple(PIXELS), help="pixel budget (default: the model's)")
    how = command.add_argument_group(
        "how to sample (defaults: the model family's official settings)"
    )
    how.add_argument("--cfg", type=numbers, help="guidance, one value or a list by scale")
    how.add_argument("--cfg-schedule", choices=("flat", "ramp"))
    how.add_argument("--cfg-layer", type=int, default=0, help="0 guides logits, -m block depth-m")
    how.add_argument("--tau", type=numbers, help="temperature, one value or a list by scale")
    how.add_argument(
        "--guide-from",
        type=int,
        default=0,
        metavar="SIDE",
        help="no guidance and temperature 1 at the maps before this side",
    )
    how.add_argument("--top-k", type=int, help="0 is off")
    how.add_argument("--top-p", type=float, help="0 is off")
    how.add_argument("--more-smooth", action="store_true", help="VAR only: blend codebook rows")
    out = command.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, default=Path("diversevar.png"), help="PNG (several: a sheet)"
    )


def add_method_options(command: argparse.ArgumentParser) -> None:
    """The paper's parameters."""
    diverse = command.add_argument_group("DiverseVAR (arXiv 2511.17074)")
    diverse.add_argument("--ssr", type=float, default=0.0, help="suppression strength, 0 is off")
    diverse.add_argument("--sar", type=float, default=0.0, help="amplification strength, 0 is off")
    diverse.add_argument("--sides", type=integers, help="of the maps it acts on (default: 4,6)")
    diverse.add_argument("--site", choices=SITES, default="model")
    diverse.add_argument("--ssr-alpha", type=float, default=1.0, help="overall gain of SSR")
    diverse.add_argument("--sar-alpha", type=float, default=1.0, help="overall gain of SAR")
    diverse.add_argument("--absolute", action="store_true", help="strengths per s, not s / s_1")


def fastest_device() -> str:
    """cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def read_text_features(path: str) -> Text:
    """Text features of a file: ``text`` (sum of lengths, Ct) cut by ``lens``; negative ones too."""
    try:
        tensors = load_file(path)
        negative = None
        if "negative_text" in tensors:
            negative = tensors["negative_text"].split(tensors["negative_lens"].tolist())
        return Text(tensors["text"].split(tensors["lens"].tolist()), negative)
    except KeyError as error:
        raise ValueError(f"{path} lacks the tensor {error.args[0]}; add it.") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} does not hold text features ({error}).") from error


def text_condition(args: argparse.Namespace, device: str) -> Text:
    """The text of every picture: from a features file, or of the prompt."""
    if args.text_features:
        given = read_text_features(args.text_features)
    elif args.prompt is None:
        raise ValueError("Infinity paints from text; give --prompt, or --text-features.")
    else:
        encoder = load_text_encoder(args.text_encoder, device)
        negative = encoder([args.negative]) if args.negative else None
        given = Text(encoder([args.prompt]), negative)
    count = pictures(args, len(given.positive))
    negative = given.negative and cycle(given.negative, count, device)
    return Text(cycle(given.positive, count, device), negative)


def class_condition(args: argparse.Namespace, model: VAR, device: str) -> Tensor:
    """The class label of every picture."""
    if args.labels is None:
        raise ValueError("VAR paints classes; give --labels.")
    for label in args.labels:
        if not 0 <= label < model.config.classes:
            raise ValueError(f"There is no class {label}; the last is {model.config.classes - 1}.")
    labels = [torch.tensor(label) for label in args.labels]
    return torch.stack(cycle(labels, pictures(args, len(labels)), device))


def pictures(args: argparse.Namespace, given: int) -> int:
    """How many pictures to make of ``given`` prompts or labels."""
    count = given if args.batch is None else args.batch
    if count < 1:
        raise ValueError(f"--batch must be 1 or more, not {count}.")
    return count


def cycle(values: list[Tensor], count: int, device: str) -> list[Tensor]:
    """``count`` values, starting over at the end."""
    return [values[i % len(values)].to(device) for i in range(count)]


def run_sample(args: argparse.Namespace) -> None:
    """Make pictures, save them, print the path."""
    job = prepare(args)
    steps = job.run([method_of(args)])
    image = job.picture(steps)
    if args.trace:
        drawn = trace(steps, "bits" if isinstance(job.model, Infinity) else "tokens")
        drawn |= {"f_hat": steps[-1].f_hat, "image": image}
        save_trace(args.trace, job.schedule, drawn)
    save_picture(args.out, sheet(image, math.ceil(math.sqrt(len(image)))))


def run_compare(args: argparse.Namespace) -> None:
    """Make the same seeds in three ways, save a row of each, print the path."""
    late, args.guide_from = args.guide_from, 0
    job = prepare(args)
    method = calibrated(args.diversity)
    freed = replace(job, settings=free_early(job.settings, job.schedule, late))
    rows = [
        ("vanilla", job.picture(job.run([]))),
        (f"DiverseVAR: diversity {args.diversity:g}", job.picture(job.run([method]))),
        (f"guided from side {late} on", freed.picture(freed.run([]))),
    ]
    save_picture(args.out, captioned_rows(rows))


@dataclass(frozen=True)
class Job:
    """Everything that ``sample`` needs but the methods."""

    model: VAR | Infinity
    tokenizer: VQVAE | BSQ
    condition: Tensor | Text
    schedule: Schedule
    settings: Settings
    seed: int
    shared: bool

    def run(self, methods: list[DiverseVAR]) -> list[Step]:
        """Sample; what every map left behind."""
        return list(
            sample(
                self.model,
                self.tokenizer,
                self.condition,
                self.schedule,
                self.settings,
                self.seed,
                self.shared,
                methods,
            )
        )

    @torch.no_grad()
    def picture(self, steps: list[Step]) -> Tensor:
        """The pictures (B, 3, H, W) in 0..1 that the last step's f_hat decodes to."""
        return to_image(self.tokenizer.decode(steps[-1].f_hat))


def prepare(args: argparse.Namespace) -> Job:
    """Load what the options name."""
    device = args.device or fastest_device()
    model = load_model(args.model, device)
    tokenizer = load_tokenizer(args.vq, device)
    if isinstance(model, VAR):
        condition, schedule = class_condition(args, model, device), model.schedule()
    else:
        condition = text_condition(args, device)
        schedule = model.schedule(args.aspect, args.pixels)
    defaults = model.defaults()
    settings = Settings(
        cfg=args.cfg or (defaults.cfg,),
        cfg_schedule=args.cfg_schedule or defaults.cfg_schedule,
        tau=args.tau or (defaults.tau,),
        top_k=defaults.top_k if args.top_k is None else args.top_k,
        top_p=defaults.top_p if args.top_p is None else args.top_p,
        cfg_layer=args.cfg_layer,
        more_smooth=args.more_smooth,
    )
    settings = free_early(settings, schedule, args.guide_from)
    shared = args.rng == "shared"
    return Job(model, tokenizer, condition, schedule, settings, args.seed, shared)


def method_of(args: argparse.Namespace) -> DiverseVAR:
    """The diversity method that the options describe."""
    return DiverseVAR(
        ssr=args.ssr,
        sar=args.sar,
        sides=args.sides,
        site=args.site,
        ssr_alpha=args.ssr_alpha,
        sar_alpha=args.sar_alpha,
        relative=not args.absolute,
    )


def trace(steps: list[Step], kind: str) -> dict[str, Tensor]:
    """``logits.K`` and ``tokens.K`` or ``bits.K`` of every scale K."""
    logits = {f"logits.{step.scale.k}": step.logits for step in steps}
    return logits | {f"{kind}.{step.scale.k}": step.tokens for step in steps}


def save_trace(path: Path, schedule: Schedule, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, the schedule ([h, w] of every scale) in its header."""
    header = {"schedule": json.dumps([[scale.h, scale.w] for scale in schedule])}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, header)


def save_picture(path: Path, image: Tensor) -> None:
    """Write a picture (3, H, W) in 0..1 and print the path."""
    to_pil(image).save(path)
    print(path)


def run_encode(args: argparse.Namespace) -> None:
    """Take a picture through the tokenizer and back."""
    tokenizer = load_tokenizer(args.vq)
    schedule = square(args.sides)
    bits = isinstance(tokenizer, BSQ)
    size = schedule[-1].w * tokenizer.autoencoder_config.stride
    f_hat = None
    with torch.no_grad():
        maps = tokenizer.encode(read_picture(args.image, size, size), schedule)
        for scale, tokens in zip(schedule, maps, strict=True):
            f_hat, _ = tokenizer.accumulate(f_hat, tokens, scale, schedule)
        image = to_image(tokenizer.decode(f_hat))
    if args.trace:
        kind = "bits" if bits else "tokens"
        tensors = {f"{kind}.{scale.k}": m for scale, m in zip(schedule, maps, strict=True)}
        save_trace(args.trace, schedule, tensors | {"f_hat": f_hat, "image": image})
    save_picture(args.out, image[0])


def run_convert(args: argparse.Namespace) -> None:
    """Write one safetensors file, print the path."""
    convert(args.source, args.out, args.dtype and DTYPES[args.dtype])
    print(args.out)


def main() -> None:
    """Run a command; a ValueError is the user's to mend and is told in its one sentence."""
    args = parser().parse_args()
    try:
        args.run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
