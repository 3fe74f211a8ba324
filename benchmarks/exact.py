"""Whether the device computes what the originals did, and what a CPU does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from diversevar_core.errors import UserError
from diversevar_core.images import captioned_rows, to_pil
from diversevar_core.methods.ssr_sar import PAPER
from diversevar_core.sampling.sampler import sample

from .card import ROOT, Card, Line

sys.path.append(str(ROOT / "tests"))
from cases import REFERENCE, write_case  # noqa: E402
from recorded import TOLERANCE, Models, Record, compare, models_of, options, record_of  # noqa: E402

SEEDS = range(8)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# torch's default, and so ComfyUI's, rounds what convolutions read to 10 bits
torch.backends.cudnn.allow_tf32 = False


def compared(what: str, models: Models, record: Record, judge: bool = True) -> Line:
    """The differences; judge: whether they must be near ties and rounding."""
    off = compare(models, record)
    value = f"{off.turned} of {off.tokens} tokens turned; logits off by {off.logits:.0e}, "
    value += f"f_hat by {off.f_hat:.0e}, image by {off.image:.0e}"
    if off.turned:
        near = f"within {off.margin:.0e}" if off.margin <= TOLERANCE else "not near"
        value += f", the turned tokens' choices {near}"
    result = ("pass" if off.near else "fail") if judge else "figure"
    return Line(what, result, value, {"turned": off.turned / off.tokens})


def reference(card: Card) -> Iterator[Line]:
    """The recorded runs of the original implementations."""
    for path in sorted(REFERENCE.glob("*.json")):
        case = write_case(path.stem, card.scratch)
        for i in range(len(case.runs)):
            models = models_of(case, i, card.scratch, card.device)
            record, what = record_of(case, i, models), f"{case.name}, run {i}"
            yield compared(what, models, record)
            if card.device.startswith("cuda") and "labels" in case.about:  # VAR's phi convolutions
                torch.backends.cudnn.allow_tf32 = True
                yield compared(f"{what}, with TF32", models, record, judge=False)
                torch.backends.cudnn.allow_tf32 = False


def octopuses(device: str = "cpu", *how: object) -> Models:
    """Eight images of the included model."""
    return Models(options("--prompt", "octopus", "--batch", len(SEEDS)), device, *how)


def spectral(card: Card) -> Iterator[Line]:
    """SSR and SAR against the CPU."""
    float32, methods = torch.float32, [PAPER]
    record = octopuses("cpu", float32, methods).record()
    yield compared("octopuses, SSR + SAR", octopuses(card.device, float32, methods), record)


def included_model(card: Card) -> Iterator[Line]:
    """The included model against the CPU in every type, from recorded tokens and freely."""
    record = octopuses().record()
    rows = [("float32, CPU", record.image)]
    for name, dtype in TYPES.items():
        try:
            models, judge = octopuses(card.device, dtype), dtype == torch.float32
            line = compared(f"octopuses, {name}", models, record, judge)
            how = models.condition, models.schedule, models.settings, SEEDS
            steps = list(sample(models.model, models.vae, *how))
        except (RuntimeError, TypeError, UserError) as error:  # a type that the card lacks, or NaN
            yield Line(f"octopuses, {name}", "fail", str(error))
            continue
        yield line
        pairs = zip(steps, record.tokens, strict=True)
        equal = torch.cat([(step.tokens.cpu() == tokens).flatten() for step, tokens in pairs])
        share = equal.float().mean().item()
        # a token that turned, at a near tie, changes what is drawn after it
        result = "pass" if share == 1 or line.numbers["turned"] else "fail"
        shown = f"{share:.1%} of the tokens equal"
        yield Line(f"octopuses, {name}, freely", result if judge else "figure", shown)
        rows.append((name, models.image(steps[-1].f_hat)))
        to_pil(captioned_rows(rows)).save(card.pictures)


CHECKS = {"reference cases": reference, "SSR + SAR": spectral, "included model": included_model}
