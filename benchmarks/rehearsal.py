"""Time and memory of loading and converting files of the official sizes.

``python benchmarks/rehearsal.py`` writes random weights in the layouts of Infinity-2B, its
tokenizer and flan-t5-xl's encoder (float32, 14 GB) to a temporary folder, converts them, loads all
in new processes, prints a table, and removes the files. ``--small`` uses small models. With
COMFYUI_PATH (and COMFYUI_PYTHON), each kind of files also makes an image of 0.06M pixels in
ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

sys.path[:0] = (str(Path(__file__).parents[1] / part) for part in ("", "tests"))
from comfy_host import HOW_TO, Host, find  # noqa: E402
from prompts import graph  # noqa: E402

from diversevar_core.checkpoints.files import Checkpoint  # noqa: E402
from diversevar_core.checkpoints.loading import load_model, load_vae  # noqa: E402
from diversevar_core.convert import convert, write  # noqa: E402
from diversevar_core.models.infinity import Infinity, InfinityConfig  # noqa: E402
from diversevar_core.text.encoder import load_text_encoder  # noqa: E402
from diversevar_core.text.t5 import T5Config, T5Encoder  # noqa: E402
from diversevar_core.vae.autoencoder import AutoencoderConfig  # noqa: E402
from diversevar_core.vae.bsq import BSQ  # noqa: E402

GB = 1e9
CHUNKS = 8  # in which the released transformers keep their blocks


@dataclass(frozen=True)
class Sizes:
    """Sizes of the three models that make an image together."""

    transformer: InfinityConfig
    tokenizer: AutoencoderConfig
    text: T5Config


FULL = Sizes(
    InfinityConfig(2048, 32, 16, 32, 2048, 8192, 512, 32, True, sides=None, pixels="1M"),
    AutoencoderConfig((128, 256, 512, 512, 512), 4, 32, attention=False),
    T5Config(32128, 2048, 64, 5120, 24, 32, True, 32),
)
SMALL = Sizes(
    InfinityConfig(512, 8, 4, 32, 256, 2048, 512, 8, True, sides=None, pixels="1M"),
    AutoencoderConfig((32, 32, 64, 64, 64), 4, 32, attention=False),
    T5Config(1000, 256, 64, 512, 4, 4, True, 32),
)


def random_weights(module: nn.Module, noise: Path) -> dict[str, Tensor]:
    """Weights for a module on the meta device, each a separate memory map of one file of noise.

    They take no memory, and ``torch.save`` writes each of them.
    """
    return {
        name: torch.from_file(str(noise), size=place.numel()).view(place.shape)
        for name, place in module.state_dict().items()
    }


def write_noise(noise: Path, *modules: nn.Module) -> None:
    """A file of normal numbers, as many as the largest tensor has."""
    count = max(place.numel() for module in modules for place in module.state_dict().values())
    numbers = torch.from_file(str(noise), shared=True, size=count)
    for part in numbers.split(2**24):
        part.normal_(std=0.02)


def official(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A transformer's weights by their released names, in chunks, with the buffers of zeros."""
    found = {}
    for name, tensor in weights.items():
        if name.startswith("blocks."):
            _, n, rest = name.split(".", 2)
            chunk, place = divmod(int(n), depth // CHUNKS)
            name = f"block_chunks.{chunk}.module.{place}.{rest}"
            if rest.endswith("v_bias"):
                found[name.replace("v_bias", "zero_k_bias")] = torch.zeros_like(tensor)
        found[name] = tensor
    return found


def write_models(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """Write the three models in their released layouts into a models folder of ComfyUI.

    Returns the paths of the ``transformer``, the ``tokenizer`` and the ``text`` encoder.
    """
    paths = {
        "transformer": folder / "diffusion_models" / "infinity_2b_reg.pth",
        "tokenizer": folder / "vae" / "infinity_vae_d32reg.pth",
        "text": folder / "text_encoders" / "flan-t5-xl",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True)
    transformer = Infinity(sizes.transformer, device="meta")
    tokenizer = BSQ(sizes.tokenizer, device="meta")
    text = T5Encoder(sizes.text, device="meta")
    noise = folder / "noise"
    write_noise(noise, transformer, tokenizer, text)
    weights = random_weights(transformer, noise)
    torch.save(official(weights, sizes.transformer.depth), paths["transformer"])
    torch.save({"vae": random_weights(tokenizer, noise)}, paths["tokenizer"])
    write_text_encoder(paths["text"], random_weights(text, noise))
    noise.unlink()
    return paths


def write_text_encoder(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """A Hugging Face folder: two shards, their index, and a tokenizer of a few words."""
    folder.mkdir()
    names, index = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = Checkpoint({name: weights[name] for name in part}, {})
        with (folder / f"model-{i}.safetensors").open("xb") as file:
            write(file, shard, dict.fromkeys(part, torch.float32))
        index |= dict.fromkeys(part, f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    words = ("<pad>", "</s>", "<unk>", "a", "cat", "on", "the", "moon")
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    end = [("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=end)
    tokenizer.save(str(folder / "tokenizer.json"))


def routes(paths: Mapping[str, Path]) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """All measurements: a description, the file that is read, and the function to call."""
    loaders = {"transformer": load_model, "tokenizer": load_vae, "text": load_text_encoder}
    for part, path in paths.items():
        yield f"load {part}, released", path, partial(loaders[part], path)
    for part, path in paths.items():
        load = loaders[part]
        bf16, fp8 = (path.with_name(f"{part}_{name}.safetensors") for name in ("bf16", "fp8"))
        yield f"convert {part} to bf16", path, partial(convert, path, bf16, torch.bfloat16)
        yield f"load {part}, bf16", bf16, partial(load, bf16, dtype=torch.bfloat16)
        yield f"load {part}, bf16, as float32", bf16, partial(load, bf16)
        yield f"convert {part} to fp8", path, partial(convert, path, fp8, torch.float8_e4m3fn)
        yield f"load {part}, fp8, as float32", fp8, partial(load, fp8)


def memory(process: str) -> tuple[int, int]:
    """Resident bytes of a process: its own memory, and mapped pages of files."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
    )
    return tuple(int(status.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def held(loaded: object) -> int:
    """Bytes of the weights that were loaded."""
    module = getattr(loaded, "encoder", None) if not isinstance(loaded, nn.Module) else loaded
    return sum(p.nbytes for p in module.parameters()) if module else 0


def child(number: int, paths: Mapping[str, Path]) -> None:
    """Run one measurement after a line of input; print seconds and bytes of weights."""
    *_, run = list(routes(paths))[number]
    torch.zeros(8, 8).bfloat16() @ torch.zeros(8, 8).bfloat16()  # torch allocates its buffers
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    loaded = run()
    print(time.perf_counter() - started, held(loaded))


def measure(number: int, paths: Mapping[str, Path]) -> tuple[float, float, float, float]:
    """Run one measurement in a new process: seconds, bytes of weights, peaks (own, mapped)."""
    places = json.dumps({part: str(path) for part, path in paths.items()})
    command = [sys.executable, __file__, "--route", str(number), places]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        before = memory(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        peaks = before
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory(process.pid)))
            time.sleep(0.005)
        seconds, weights = map(float, process.stdout.read().split())
    own, mapped = (peak - first for peak, first in zip(peaks, before, strict=True))
    return seconds, weights, own, mapped


def size_of(path: Path) -> int:
    """Bytes of a file or folder."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.iterdir()))


def report(paths: Mapping[str, Path]) -> Iterator[str]:
    """Lines of the table, as they are found."""
    yield "| route | seconds | file GB | weights GB | peak, own GB | peak, mapped files GB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for number, (name, path, _) in enumerate(routes(paths)):
        seconds, *found = measure(number, paths)
        figures = " | ".join(f"{n / GB:.2f}" for n in (size_of(path), *found))
        yield f"| {name} | {seconds:.1f} | {figures} |"


def image_prompt(paths: Mapping[str, Path], kind: str) -> dict:
    """A prompt for ComfyUI that loads all three models from files of one kind."""
    names = {part: path.name for part, path in paths.items()}
    if kind != "released":
        names = {part: f"{part}_{kind}.safetensors" for part in paths}
    size = {"megapixels": "0.06M"}
    prompt = graph("infinity", "a cat on the moon", size=size, preset="as published")
    prompt["model"]["inputs"]["model_name"] = names["transformer"]
    prompt["vae"]["inputs"]["vae_name"] = names["tokenizer"]
    prompt["clip"]["inputs"]["clip_name"] = names["text"]
    return prompt


def in_host(paths: Mapping[str, Path], base: Path) -> Iterator[str]:
    """Lines of the table of a real ComfyUI, started anew for each kind of files."""
    found = find()
    if found is None:
        yield HOW_TO
        return
    yield "| files | first image, seconds | peak, own GB | peak, mapped files GB |"
    yield "| --- | --- | --- | --- |"
    for kind in ("released", "bf16", "fp8"):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "models").symlink_to(base / "models")
            host = Host(*found, Path(folder))
            peaks = before = memory(str(host.process.pid))
            done = threading.Event()

            def watch(pid: str = str(host.process.pid), done: threading.Event = done) -> None:
                nonlocal peaks
                while not done.wait(0.05):
                    peaks = tuple(map(max, peaks, memory(pid)))

            watching = threading.Thread(target=watch)
            watching.start()
            started = time.perf_counter()
            try:
                outcome = host.run(image_prompt(paths, kind), seconds=3600)
                seconds = time.perf_counter() - started
            finally:
                done.set()
                watching.join()
                host.stop()
            if outcome.error:
                raise RuntimeError(outcome.error)
        own, mapped = ((peak - first) / GB for peak, first in zip(peaks, before, strict=True))
        yield f"| {kind} | {seconds:.0f} | {own:.2f} | {mapped:.2f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="small models, for a quick look")
    parser.add_argument("--folder", type=Path, help="where there is room for 30 GB (default: temp)")
    parser.add_argument("--route", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.route:
        number, places = args.route
        child(int(number), {part: Path(path) for part, path in json.loads(places).items()})
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            base = Path(folder)
            paths = write_models(base / "models", SMALL if args.small else FULL)
            for lines in (report(paths), in_host(paths, base)):
                for line in lines:
                    print(line, flush=True)
                print()
