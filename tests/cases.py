"""The reference cases: tiny models in the official layouts, and the originals' results."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

REFERENCE = Path(__file__).parent / "reference"

spec = importlib.util.spec_from_file_location("weights", REFERENCE / "weights.py")
weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(weights)


@dataclass(frozen=True)
class Case:
    """A reference case: its description, its expected tensors, and its two checkpoints' paths."""

    name: str
    about: dict
    expected: dict[str, Tensor]
    model: Path
    vae: Path

    @property
    def runs(self) -> list[dict]:
        """Arguments of every run."""
        return self.about["runs"]


def state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The stand-in weights for a table of shapes."""
    return {key: torch.from_numpy(value) for key, value in weights.state_dict(shapes).items()}


def write_case(name: str, folder: Path) -> Case:
    """Write a case's checkpoints as safetensors with a sidecar, as a user would have them."""
    about = json.loads((REFERENCE / f"{name}.json").read_text())
    paths = {}
    for network, shapes in about["shapes"].items():
        paths[network] = folder / f"{name}_{network}.safetensors"
        save_file(state_dict(shapes), paths[network])
        facts = about["config"] | ({"task": "edit"} if about["family"] == "varedit" else {})
        paths[network].with_suffix(".json").write_text(json.dumps(facts))
    vae = paths.pop("vae")
    (model,) = paths.values()
    return Case(name, about, load_file(REFERENCE / f"{name}.safetensors"), model, vae)


def listed(value) -> str:
    """A value or several, as the command line takes them."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def arguments(case: Case, i: int, folder: Path) -> list:
    """The arguments of ``tests.trace`` for a case's run i."""
    run = case.runs[i]
    shown = ["--model", case.model, "--vae", case.vae, "--rng", "shared"]
    shown += ["--top-k", run.get("top_k", 0), "--top-p", run.get("top_p", 0)]
    shown += ["--cfg", listed(run["cfg"]), "--seed", run.get("seed", run.get("g_seed"))]
    tokens = {name.removeprefix(f"run{i}."): tensor for name, tensor in case.expected.items()}
    tokens = {name: t.long() for name, t in tokens.items() if name.startswith(("tokens.", "bits."))}
    save_file(tokens, folder / "theirs.safetensors")
    if run.get("more_smooth"):
        shown.append("--more-smooth")  # what comes after a map does not depend on its tokens
    else:
        shown += ["--follow", folder / "theirs.safetensors"]
    if "labels" in case.about:
        return [*shown, "--labels", listed(run.get("labels", case.about["labels"]))]
    text = {"text": case.expected[f"run{i}.text"], "lens": torch.tensor(run["lens"])}
    if "neg_lens" in run:
        text["negative_text"] = case.expected[f"run{i}.negative_text"]
        text["negative_lens"] = torch.tensor(run["neg_lens"])
    save_file(text, folder / "text.safetensors")
    shown += ["--text-features", folder / "text.safetensors", "--tau", listed(run["tau"])]
    shown += ["--aspect", 1 / run.get("ratio", 1.0), "--pixels", case.about["config"]["pn"]]
    if case.about["family"] == "varedit":
        features = {"features": case.expected[f"run{i}.source_features"]}
        save_file(features, folder / "source.safetensors")
        shown += ["--source-features", folder / "source.safetensors"]
    return [*shown, "--cfg-layer", run["cfg_insertion_layer"][0]]


def write_text_encoder(folder: Path, width: int = 256) -> Path:
    """Write a random T5 encoder of this width with a word-level tokenizer, as transformers does."""
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        "a",
        "red",
        "apple",
        "cat",
        "on",
        "the",
        "moon",
        "image",
        "of",
    ]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(words),
        d_model=width,
        d_kv=32,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder
