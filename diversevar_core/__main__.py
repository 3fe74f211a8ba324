"""The command line: ``python -m diversevar_core sample --help``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .analysis.calibrate import Task, calibrate, choose
from .analysis.front import front_plot
from .checkpoints import included
from .checkpoints.convert import DTYPES, check_out, convert
from .checkpoints.files import version_of
from .checkpoints.loading import load_model, load_tokenizer
from .images import (
    captioned_rows,
    into_square,
    open_image,
    out_of_square,
    read_image,
    sheet,
    to_pil,
)
from .methods.adaptive import AdaptiveScaling
from .methods.fastvar import FastVAR
from .methods.path_search import PathSearch
from .methods.repulsion import Repulsion
from .methods.scalekv import ScaleKV
from .methods.ssr_sar import SITES, DiverseVAR
from .methods.starts import Starts
from .methods.text_noise import TextNoise
from .methods.travel import Travel
from .models.compiled import compile_blocks
from .models.family import Family
from .models.infinity import TASKS
from .models.packed import fastest_dtype, pack
from .models.pairing import check_pair, image_size
from .quote import quote
from .sampling.conditions import Condition, Labels, Text
from .sampling.job import draw
from .sampling.presets import PRESETS, Preset, calibrated_preset, calibration_path
from .sampling.run import Method, Step, drawn_maps
from .sampling.schedule import PIXELS, Schedule, checked_sides, square
from .sampling.settings import Settings
from .text.encoder import load_text_encoder
from .vae.autoencoder import to_image
from .vae.tokenizer import Tokenizer

PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # what images are written as
CALIBRATION = "my calibration"  # the preset that ``calibrate`` saves


def numbers(text: str) -> tuple[float, ...]:
    """``4,4,3`` -> (4.0, 4.0, 3.0)."""
    return tuple(float(part) for part in text.split(","))


def integers(text: str) -> tuple[int, ...]:
    """``4,6`` -> (4, 6)."""
    return tuple(int(part) for part in text.split(","))


def aspect(text: str) -> float:
    """``4:3`` or ``1.333``, height to width."""
    height, _, width = text.partition(":")
    if width and float(width) == 0:
        raise ValueError("there is no width")
    return float(height) / float(width or 1)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="diversevar_core", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    one = commands.add_parser("sample", help="make images", description="Make images.")
    one.set_defaults(run=run_sample)
    add_sampling_options(one)
    add_method_options(one)
    one.add_argument("--trace", type=Path, help="safetensors of every map's logits and tokens")

    both = commands.add_parser(
        "compare",
        help="a batch as published and with presets",
        description="Make a batch several times: as the model is, and with each preset that is "
        "named.",
    )
    both.set_defaults(run=run_compare)
    add_sampling_options(both)
    both.add_argument(
        "--presets",
        nargs="+",
        choices=[*PRESETS, CALIBRATION],
        default=["SSR + SAR as in the paper", "balanced", "most different"],
    )
    both.set_defaults(prompt="octopus", batch=8)

    tune = commands.add_parser(
        "calibrate",
        help="find the strengths that suit a model",
        description="Try several strengths on a few prompts, plot diversity against the model's "
        "own judgement, and save the best beside the model, for --preset 'my calibration'. Stop it "
        "at any moment and start it again: what is measured stays.",
    )
    tune.set_defaults(run=run_calibrate)
    add_model_options(tune)
    tune.add_argument(
        "--prompts", type=Path, required=True, help="text file: a prompt, or a class, a line"
    )
    tune.add_argument("--seeds", type=int, default=6, help="images a prompt")
    tune.add_argument("--out", type=Path, default=Path("diversevar.png"), help="the plot")

    two = commands.add_parser("encode", help="image -> token maps -> image")
    two.set_defaults(run=run_encode)
    two.add_argument("--vq", required=True, help="tokenizer")
    two.add_argument("--image", required=True, help="image file")
    two.add_argument("--sides", type=integers, required=True, help="of its maps, as in 1,2,4,6,8")
    two.add_argument("--out", type=Path, default=Path("diversevar.png"), help="the image again")
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


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Which files, and where they run."""
    files = command.add_argument_group("models")
    files.add_argument("--model", default=included.MODEL, help="transformer: file or folder")
    files.add_argument("--vq", default=included.TOKENIZER, help="its tokenizer")
    files.add_argument(
        "--text-encoder",
        default=included.TEXT_ENCODER,
        help="T5: folder, or file with tokenizer.json beside it or in its header",
    )
    files.add_argument("--task", choices=TASKS, help="of an Infinity (default: as the file says)")
    files.add_argument("--device", help="cpu, cuda or mps (default: the fastest there is)")
    files.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "fastest"),
        help="type of the transformer's products (default: float32 on a CPU, else as stored); "
        "fastest measures a CPU's. A seed's image depends on it",
    )
    files.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer's blocks, for a GPU: the first images take longer",
    )


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """What ``sample`` and ``compare`` take."""
    add_model_options(command)
    what = command.add_argument_group("what to make")
    what.add_argument("--prompt", help="text of the image")
    what.add_argument("--negative", help="text to steer away from")
    what.add_argument("--text-features", help="safetensors with text, lens[, negative_text, ...]")
    what.add_argument("--source", help="editing models: the image; --prompt says what to change")
    what.add_argument("--source-features", help="the same as safetensors: features (1, d, H, W)")
    what.add_argument("--labels", type=integers, help="class labels, as in 3,7")
    what.add_argument("--batch", type=int, help="images (default: one a prompt or label)")
    what.add_argument("--seed", type=int, default=0, help="image i has seed + i (default 0)")
    what.add_argument("--rng", choices=("per-image", "shared"), default="per-image")
    what.add_argument(
        "--exact-batch", action="store_true", help="compute each image of a batch alone"
    )
    what.add_argument("--aspect", type=aspect, default=1.0, help="height to width: 4:3 or 1.333")
    what.add_argument("--pixels", choices=tuple(PIXELS), help="pixel budget (default: the model's)")
    how = command.add_argument_group(
        "how to sample (defaults: the model family's official settings)"
    )
    how.add_argument("--cfg", type=numbers, help="guidance, one value or a list by scale")
    how.add_argument("--cfg-schedule", choices=("flat", "ramp"))
    how.add_argument("--cfg-layer", type=int, help="0 guides logits, -m block depth-m")
    how.add_argument("--tau", type=numbers, help="temperature, one value or a list by scale")
    how.add_argument(
        "--guidance-start",
        type=int,
        metavar="SIDE",
        help="no guidance and temperature 1 at the maps before this side",
    )
    how.add_argument(
        "--guidance-end", type=int, metavar="SIDE", help="no guidance at the maps after this side"
    )
    how.add_argument("--top-k", type=int, help="0 is off")
    how.add_argument("--top-p", type=float, help="0 is off")
    how.add_argument("--more-smooth", action="store_true", default=None, help="VAR: blend rows")
    out = command.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, default=Path("diversevar.png"), help="PNG (several: a sheet)"
    )


def add_method_options(command: argparse.ArgumentParser) -> None:
    """What makes seeds differ."""
    diverse = command.add_argument_group("DiverseVAR (arXiv 2511.17074)")
    diverse.add_argument("--ssr", type=float, default=0.0, help="suppression strength, 0 is off")
    diverse.add_argument("--sar", type=float, default=0.0, help="amplification strength, 0 is off")
    diverse.add_argument("--sides", type=integers, help="of the maps it acts on (default: 4,6)")
    diverse.add_argument("--site", choices=SITES, default="block")
    diverse.add_argument("--ssr-alpha", type=float, default=1.0, help="overall gain of SSR")
    diverse.add_argument("--sar-alpha", type=float, default=1.0, help="overall gain of SAR")
    diverse.add_argument("--absolute", action="store_true", help="strengths per s, not s / s_1")
    other = command.add_argument_group("other ways to make seeds differ")
    other.add_argument(
        "--preset",
        choices=[*PRESETS, CALIBRATION],
        help="sets --guidance-start, --starts, --ssr, --sar and --repulsion",
    )
    other.add_argument(
        "--starts", type=int, default=1, help="seeds to start, of which the most different finish"
    )
    other.add_argument("--starts-side", type=int, default=6, help="up to which map they start")
    other.add_argument(
        "--repulsion", type=float, default=0.0, help="how strongly images of a batch push apart"
    )
    other.add_argument("--repulsion-side", type=int, default=4, help="up to which map they push")
    other.add_argument(
        "--adaptive", type=float, default=0.0, help="adaptive logits scaling, 0 (off) to 1"
    )
    other.add_argument("--paths", type=int, default=1, help="candidates of the path search")
    other.add_argument("--paths-ahead", type=int, default=1, help="maps that they look ahead")
    other.add_argument("--text-noise", type=float, default=0.0, help="its strength")
    other.add_argument(
        "--travel", type=int, default=0, help="draw again from the map after this side, 0 is off"
    )
    fast = command.add_argument_group("FastVAR (arXiv 2503.23367): large images in less time")
    fast.add_argument(
        "--prune", type=float, default=0.0, help="share of tokens left out (published 0.5)"
    )
    fast.add_argument("--skip", type=int, default=0, help="last maps left out (published 2)")
    small = command.add_argument_group("ScaleKV (arXiv 2505.19602): large images in less memory")
    small.add_argument(
        "--cache", type=float, default=1.0, help="share of keys and values kept (published 0.1)"
    )


def devices() -> list[str]:
    """The devices there are, the fastest first."""
    cards = [
        name
        for kind in ("cuda", "xpu")
        if getattr(torch, kind).is_available()
        for name in (kind, *(f"{kind}:{i}" for i in range(getattr(torch, kind).device_count())))
    ]
    return [*cards, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def device_of(name: str | None) -> str:
    """The device of this name, or the fastest one; ValueError where it is not there."""
    there = devices()
    if name and name not in there:
        raise ValueError(f"There is no device {quote(name)} here; choose of {', '.join(there)}.")
    return name or there[0]


def place(path: Path, *suffixes: str) -> Path:
    """Where to write a file: with the first suffix if it has none of these, its folder made.

    ValueError where nothing can be written there, so that it is said before the work.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file; name one in it, or another")
        if path.suffix.lower() not in suffixes:
            path = path.with_name(path.name + suffixes[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{quote(path)} cannot be written: {reason}.") from error
    return path


def dtype_of(name: str | None, device: str) -> torch.dtype | None:
    """The type that --dtype names; None leaves it to ``load_model``."""
    if name == "fastest":
        return fastest_dtype() if device == "cpu" else None
    return name and getattr(torch, name)


def read_text_features(path: str) -> Text:
    """Text features of a file: ``text`` (sum of lengths, Ct) cut by ``lens``; negative ones too."""
    try:
        tensors = load_file(path)
        negative = None
        if "negative_text" in tensors:
            negative = tensors["negative_text"].split(tensors["negative_lens"].tolist())
        return Text(tensors["text"].split(tensors["lens"].tolist()), negative)
    except KeyError as error:
        raise ValueError(f"{quote(path)} lacks the tensor {error.args[0]}; add it.") from error
    except (SafetensorError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(f"{quote(path)} does not hold text features ({error}).") from error


def read_source_features(path: str, device: str) -> Tensor:
    """Source features (1, d, H, W) of a file."""
    try:
        features = load_file(path)["features"].to(device, torch.float32)
    except (KeyError, SafetensorError, OSError) as error:
        raise ValueError(f"{quote(path)} does not hold source features ({error}).") from error
    if features.ndim != 4 or len(features) != 1:
        raise ValueError(
            f"The features of {quote(path)} are {list(features.shape)}, not (1, d, H, W)."
        )
    return features


@torch.no_grad()
def source_of(
    args: argparse.Namespace, model: Family, tokenizer: Tokenizer, schedule: Schedule, device: str
) -> Tensor | None:
    """Features of the image to edit, if there is one."""
    if args.source_features:
        return read_source_features(args.source_features, device)
    if not args.source:
        return None
    height, width = image_size(model, tokenizer, schedule)
    if height != width:
        raise ValueError("Images are edited in a square; leave --aspect at 1:1.")
    return tokenizer.features(into_square(open_image(args.source), width).to(device))


def condition_of(
    args: argparse.Namespace, model: Family, source: Tensor | None, device: str
) -> Condition:
    """What every image shows: classes, or text of a features file or a prompt."""
    if model.reads is Labels:
        if source is not None:
            raise ValueError(f"{model.name} edits no images; leave out the source.")
        if args.labels is None:
            raise ValueError(f"{model.name} paints classes; give --labels.")
        labels = cycle([torch.tensor(label) for label in args.labels], args.batch, device)
        return Labels(torch.stack(labels))
    if args.text_features:
        given = read_text_features(args.text_features)
    elif args.prompt is None:
        raise ValueError(f"{model.name} paints from text; give --prompt, or --text-features.")
    else:
        encoder = load_text_encoder(args.text_encoder, device)
        given = Text(encoder([args.prompt]), encoder([args.negative]) if args.negative else None)
        if sentence := encoder.unseen(args.prompt):
            print(sentence, file=sys.stderr)
    positive = cycle(given.positive, args.batch, device)
    negative = given.negative and cycle(given.negative, len(positive), device)
    return Text(positive, negative, source)


def cycle(values: Sequence[Tensor], count: int | None, device: str) -> list[Tensor]:
    """``count`` values (None: as many as there are), starting over at the end."""
    if count is not None and count < 1:
        raise ValueError(f"--batch must be 1 or more, not {count}.")
    return [values[i % len(values)].to(device) for i in range(count or len(values))]


def run_sample(args: argparse.Namespace) -> None:
    """Make images, save them, print the path."""
    args.out = place(args.out, *PICTURES)
    args.trace = args.trace and place(args.trace, ".safetensors")
    job, chain = prepare(args), chain_of(args)
    settings = job.settings
    if args.preset:
        preset = preset_of(args.preset, args.model)
        settings, chain = preset.settings(settings), preset.methods(chain)
    seeds, steps = job.run(settings, chain)
    image = job.image(steps)
    if args.trace:
        drawn = trace([step.tokens for step in steps], job.tokenizer)
        drawn |= {f"logits.{step.scale.k}": step.logits for step in steps}
        save_trace(args.trace, job.schedule, drawn | {"f_hat": steps[-1].f_hat, "image": image})
    image = job.as_source(image)
    save_image(args.out, sheet(image, math.ceil(math.sqrt(len(image)))), seeds)


def run_compare(args: argparse.Namespace) -> None:
    """Make a batch as published and with every preset, save a row of each, print the path."""
    args.out = place(args.out, *PICTURES)
    job = prepare(args)
    rows = []
    for name in ("as published", *args.presets):
        preset = preset_of(name, args.model)
        _, steps = job.run(preset.settings(job.settings), preset.methods())
        row = job.as_source(job.image(steps))
        rows.append((name if str(preset) == name else f"{name}: {preset}", row))
    save_image(args.out, captioned_rows(rows))


def run_calibrate(args: argparse.Namespace) -> None:
    """Measure every strength, save the choice beside the model, plot, print what was chosen."""
    args.out, device = place(args.out, *PICTURES), device_of(args.device)
    model, tokenizer = load_pair(args, device)
    lines = read_lines(args.prompts)
    if model.reads is Labels:
        conditions = [Labels(torch.tensor([label], device=device)) for label in classes_of(lines)]
    else:
        encoder = load_text_encoder(args.text_encoder, device)
        conditions = [Text(encoder([line])) for line in lines]
    path, started = calibration_path(Path(args.model)), time.monotonic()
    task = Task(model, tokenizer, conditions, model.schedule(), model.defaults(), args.seeds)
    files = [args.model, args.vq, *([] if model.reads is Labels else [args.text_encoder])]
    about = {"prompts": lines, "seeds": args.seeds, "features": "pixels"}
    about["files"] = [version_of(Path(file)) for file in files]
    about["types"] = [str(model.dtype), str(tokenizer.dtype)]
    begun, measured = 0.0, []
    for now, done in calibrate(task, path, about):
        begun = begun or done
        if begun < done < 1:
            left = (time.monotonic() - started) * (1 - done) / (done - begun)
            print(f"{done:.0%} done, about {left:.0f} s left", file=sys.stderr)
        measured = now
    chosen = choose(measured)
    to_pil(front_plot(measured, chosen)).save(args.out)
    print(f"{chosen.preset}: saved to {path}, plot in {args.out}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; ValueError where there are none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{quote(path)} cannot be read as text ({error}).") from error
    if not lines:
        raise ValueError(f"{quote(path)} is empty; write a few prompts, one a line.")
    return lines


def classes_of(lines: Sequence[str]) -> list[int]:
    """Class labels, one a line."""
    if not all(line.isdecimal() for line in lines):
        raise ValueError("This model paints classes; write their numbers, one a line.")
    return [int(line) for line in lines]


def preset_of(name: str, model: str | Path) -> Preset:
    """The preset of a name; ValueError where the model was not calibrated."""
    return calibrated_preset(Path(model)) if name == CALIBRATION else PRESETS[name]


@dataclass(frozen=True)
class Job:
    """What the options name, loaded."""

    model: Family
    tokenizer: Tokenizer
    condition: Condition
    schedule: Schedule
    settings: Settings
    seed: int
    shared: bool
    exact_batch: bool
    size: tuple[int, int] | None  # width and height of the source image

    def run(
        self, settings: Settings, methods: Sequence[Method] = ()
    ) -> tuple[list[int], list[Step]]:
        """Choose seeds and sample; the seeds, and what every map left behind."""
        how = (self.model, self.tokenizer, self.condition, self.schedule, settings)
        options = {"shared": self.shared, "exact_batch": self.exact_batch}
        drawn = draw(*how, self.seed, methods, **options)
        return drawn.seeds, list(drawn.steps)[-len(drawn_maps(self.schedule, methods)) :]

    @torch.no_grad()
    def image(self, steps: list[Step]) -> Tensor:
        """The images (B, 3, H, W) in 0..1 that the last step's f_hat decodes to."""
        return to_image(self.tokenizer.decode(steps[-1].f_hat))

    def as_source(self, images: Tensor) -> Tensor:
        """Images in the source image's own size, where there is one."""
        return out_of_square(images.cpu(), *self.size) if self.size else images


def load_pair(args: argparse.Namespace, device: str) -> tuple[Family, Tokenizer]:
    """The transformer and the tokenizer that the options name."""
    model = load_model(args.model, device, dtype_of(args.dtype, device), task=args.task)
    tokenizer = load_tokenizer(args.vq, device)
    check_pair(model, tokenizer)
    if args.compile:
        compile_blocks(model, device)
    elif device == "cpu":
        pack(model)
    return model, tokenizer


def prepare(args: argparse.Namespace) -> Job:
    """Load what the options name."""
    device = device_of(args.device)
    model, tokenizer = load_pair(args, device)
    schedule = model.schedule(args.aspect, args.pixels)
    source = source_of(args, model, tokenizer, schedule, device)
    condition = condition_of(args, model, source, device)
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = replace(model.defaults(), **given)
    draws = args.seed, args.rng == "shared", args.exact_batch
    size = open_image(args.source).size if args.source else None
    return Job(model, tokenizer, condition, schedule, settings, *draws, size)


def chain_of(args: argparse.Namespace) -> tuple[Method, ...]:
    """The methods that the options turn on."""
    spectral = DiverseVAR(
        ssr=args.ssr,
        sar=args.sar,
        sides=args.sides,
        site=args.site,
        ssr_alpha=args.ssr_alpha,
        sar_alpha=args.sar_alpha,
        relative=not args.absolute,
    )
    spectral_acts = args.ssr or args.sar or (args.ssr_alpha, args.sar_alpha) != (1, 1)
    methods = (
        (spectral_acts, spectral),
        (args.starts != 1, Starts(args.starts, args.starts_side)),
        (args.repulsion, Repulsion(args.repulsion, args.repulsion_side)),
        (args.adaptive, AdaptiveScaling(args.adaptive)),
        (args.paths != 1, PathSearch(args.paths, args.paths_ahead)),
        (args.text_noise, TextNoise(args.text_noise)),
        (args.travel, Travel(args.travel)),
        (args.prune or args.skip, FastVAR(args.prune, args.skip)),
        (args.cache != 1, ScaleKV(args.cache)),
    )
    return tuple(method for acts, method in methods if acts)


def trace(maps: list[Tensor], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """``tokens.K``, or ``bits.K`` where a token is bits, of every scale K."""
    kind = "bits" if tokenizer.token_kind.choices == 2 else "tokens"
    return {f"{kind}.{k}": tokens for k, tokens in enumerate(maps)}


def save_trace(path: Path, schedule: Schedule, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, the schedule ([h, w] of every scale) in its header."""
    header = {"schedule": json.dumps([[scale.h, scale.w] for scale in schedule])}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, header)


def save_image(path: Path, image: Tensor, seeds: Sequence[int] = ()) -> None:
    """Write an image (3, H, W) in 0..1, its seeds in its metadata, and print the path."""
    about = PngInfo()
    if seeds:
        about.add_text("seeds", ", ".join(map(str, seeds)))
    to_pil(image).save(path, pnginfo=about)
    print(path)


@torch.no_grad()
def run_encode(args: argparse.Namespace) -> None:
    """Take an image through the tokenizer and back."""
    args.out = place(args.out, *PICTURES)
    args.trace = args.trace and place(args.trace, ".safetensors")
    schedule = square(checked_sides(args.sides, "--sides"))
    tokenizer = load_tokenizer(args.vq)
    size = schedule[-1].w * tokenizer.stride
    features = tokenizer.features(read_image(args.image, size, size))
    maps, f_hat = tokenizer.quantize_maps(features, schedule), None
    for scale, tokens in zip(schedule, maps, strict=True):
        f_hat, _ = tokenizer.accumulate(f_hat, tokens, scale)
    image = to_image(tokenizer.decode(f_hat))
    if args.trace:
        drawn = trace(maps, tokenizer) | {"f_hat": f_hat, "image": image}
        save_trace(args.trace, schedule, drawn)
    save_image(args.out, image[0])


def run_convert(args: argparse.Namespace) -> None:
    """Write one safetensors file, print the path."""
    args.out = args.out if args.out.suffix else place(args.out, ".safetensors")
    check_out(args.out)
    place(args.out, ".safetensors")
    convert(args.source, args.out, args.dtype and DTYPES[args.dtype])
    print(args.out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what the user can put right is told in the error's one sentence."""
    args = parser().parse_args(argv)
    if sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for a path that it cannot show
    try:
        args.run(args)
    except (ValueError, OSError) as error:  # OSError: a full disk, at the end
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
