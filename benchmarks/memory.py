"""Memory of Infinity and VAREdit: measured peaks of small models, and a table for the releases.

``python -m benchmarks memory`` samples one guided 1M-pixel image with small random models on a CPU,
measures the peak of the process's memory above the weights, and divides it by the result of
``needs``. The same arithmetic gives the table for the released sizes, on a GPU in bfloat16.
"""

import multiprocessing
from collections.abc import Iterator

import torch

from diversevar_core.conditions import Text
from diversevar_core.models.infinity import Infinity, InfinityConfig
from diversevar_core.sampling.sampler import sample
from diversevar_core.schedule import Schedule, infinity_schedule
from diversevar_core.settings import Settings
from diversevar_core.vae.autoencoder import AutoencoderConfig
from diversevar_core.vae.bsq import BSQ

from .meter import peak, return_freed_memory

SCHEDULE = infinity_schedule(1.0, "1M")
PROMPT = 32  # tokens
ROWS = 2  # of one guided image
STREAMS = 8  # float32 tensors (rows, tokens, width) alive at once in the last map's largest step
GB = 1e9
SCALED = [(width, depth, "generate") for width, depth in ((128, 4), (256, 4), (256, 8), (256, 16))]
SCALED += [(256, 4, "edit")]
RELEASED = {
    "Infinity-2B": (2048, 32, 16, 32),
    "Infinity-8B": (3584, 40, 28, 56),
    "VAREdit-8B": (3584, 40, 28, 56, True),
}


def config(width: int, depth: int, heads: int, bits: int, edits: bool = False) -> InfinityConfig:
    """An Infinity of this size that reads flan-t5-xl."""
    sizes = width, depth, heads, bits, 2048, 4 * width, 512, depth, True
    return InfinityConfig(*sizes, sides=None, pixels="1M", edits=edits)


def needs(
    sizes: InfinityConfig, itemsize: int, schedule: Schedule = SCHEDULE, batch: int = 1
) -> dict[str, float]:
    """Bytes of a guided batch: what is kept from map to map, and what the last map needs."""
    last, before = schedule[-1].tokens, schedule[-1].begin
    token, source = ROWS * batch * sizes.width, last * sizes.edits
    # one block's keys and values with the last map's: of one row at a time, or, with a source, of
    # all rows
    block = 2 * sizes.width * (before + last)
    if sizes.edits:
        block = token * (3 * (before + last) + 2 * source)
    return {
        "source": 2 * token * source * sizes.depth * itemsize,
        "cache": 2 * token * before * sizes.depth * itemsize,
        "text": 2 * token * PROMPT * sizes.depth * itemsize,
        "block": block * itemsize,
        "streams": STREAMS * token * last * 4,
    }


def weights(sizes: InfinityConfig) -> tuple[int, int]:
    """Bytes of all weights in bfloat16 as loaded, and of the largest layer."""
    model = Infinity(sizes, device="meta", dtype=torch.bfloat16)
    layers = [sum(p.nbytes for p in m.parameters(recurse=False)) for m in model.modules()]
    return sum(layers), max(layers)


def measured(sizes: InfinityConfig) -> int:
    """Peak memory in bytes above the weights for one guided image in float32."""
    model = Infinity(sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    tokenizer = BSQ(AutoencoderConfig((32, 32), 1, sizes.bits, attention=False))
    settings = Settings((4.0,), "flat", (1.0,), top_k=0, top_p=1.0)
    source = torch.randn(1, sizes.bits, *SCHEDULE[-1].full) if sizes.edits else None
    text = Text([torch.randn(PROMPT, sizes.text)], source=source)
    small = infinity_schedule(1.0, "0.06M")
    for schedule in (small, SCHEDULE):  # with the first, torch allocates its own buffers
        before = peak("cpu", reset=True)
        for _ in sample(model, tokenizer, text, schedule, settings, seeds=[0]):
            pass
    return peak("cpu") - before


def scaled() -> Iterator[str]:
    """Lines of the measurement."""
    yield "| width, depth | measured GB | computed GB | ratio |"
    yield "| --- | --- | --- | --- |"
    for width, depth, task in SCALED:
        sizes = config(width, depth, width // 64, 32, task == "edit")
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found = fresh.apply(measured, (sizes,)) / GB
        computed = sum(needs(sizes, 4).values()) / GB
        ratio = found / computed
        yield f"| {width}, {depth}, {task} | {found:.2f} | {computed:.2f} | {ratio:.2f} |"


def released() -> Iterator[str]:
    """Lines of the table of releases."""
    yield "| model | weights | largest layer | cache | last map | everything loaded | streamed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, numbers in RELEASED.items():
        sizes = config(*numbers)
        whole, layer = weights(sizes)
        part = needs(sizes, 2)
        kept = part["source"] + part["cache"] + part["text"]
        work = part["block"] + part["streams"]
        numbers = (whole, layer, kept, work, whole + kept + work, 2 * layer + kept + work)
        yield f"| {name} | " + " | ".join(f"{n / GB:.2f}" for n in numbers) + " |"


def main() -> None:
    """Print both tables."""
    return_freed_memory()
    for part in (scaled, released):
        for row in part():
            print(row, flush=True)
        print()
