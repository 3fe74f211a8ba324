"""The T5 encoder is transformers' own to rounding, whatever file it comes from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

from diversevar_core.checkpoints.files import CheckpointError, names_in
from diversevar_core.text.encoder import build_t5, is_t5, load_text_encoder, read_t5, rename
from diversevar_core.text.t5 import T5Encoder, read_config, relative_buckets

ROOT = Path(__file__).parents[2]
PROMPT = "a red apple on the moon"


def random_t5(gated: bool, kind: type = T5EncoderModel, **changes):
    """A random T5 whose position biases and gates matter."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 96, "d_kv": 16, "d_ff": 160, "num_heads": 6}
    activation = "gated-gelu" if gated else "relu"
    config = T5Config(**sizes, num_layers=3, feed_forward_proj=activation, **changes)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.5 if "bias" in name else 0.1)
    return model


def ours(state_dict) -> T5Encoder:
    tensors = rename(state_dict)
    encoder = T5Encoder(read_config(tensors))
    encoder.load_state_dict(tensors)
    return encoder


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 300])
@torch.no_grad()
def test_encoder_is_transformers_own(gated, tokens):
    """No farther than two float32 computations that are as good: twice its distance to float64."""
    theirs = random_t5(gated)
    ids = torch.randint(0, 50, (2, tokens))
    want, got = theirs(input_ids=ids).last_hidden_state, ours(theirs.state_dict())(ids)
    rounding = (want - theirs.double()(input_ids=ids).last_hidden_state).abs().max().item()
    assert 0 < rounding < 1e-4  # numbers of size 4 after 3 layers, of sums of up to 300
    torch.testing.assert_close(got, want, atol=2 * rounding, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@torch.no_grad()
def test_half_precision_stays_near(dtype, tolerance, text_encoder):
    file = read_t5(text_encoder)
    ids = torch.randint(0, 12, (1, 40))
    want = build_t5(file, "", dtype=torch.float32)(ids)
    got = build_t5(file, "", dtype=dtype)(ids)
    assert got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()) < tolerance


@torch.no_grad()
def test_float16_does_not_overflow():
    """Gated products far beyond float16's 65504, as flan-T5's reach, still come through."""
    theirs = random_t5(gated=True)
    for block in theirs.encoder.block:
        block.layer[1].DenseReluDense.wi_0.weight *= 300
        block.layer[1].DenseReluDense.wi_1.weight *= 300
        block.layer[1].DenseReluDense.wo.weight *= 1e-3
    ids = torch.randint(0, 50, (1, 20))
    tensors = rename(theirs.state_dict())
    encoder = T5Encoder(read_config(tensors), dtype=torch.float16)
    encoder.load_state_dict(tensors)
    want = theirs(input_ids=ids).last_hidden_state
    assert ((encoder(ids) - want).norm() / want.norm()) < 0.02


def test_distances_share_buckets_as_the_paper_says():
    buckets = relative_buckets(300, 32)
    assert buckets[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]  # exact up to 7 ahead
    assert buckets[:9, 0].tolist() == list(range(9))
    assert (buckets[0, 128:] == 31).all() and (buckets[128:, 0] == 15).all()
    assert len(buckets.unique()) == 31  # 16, "0 tokens ahead", cannot be


def test_prompt_as_transformers_reads_it(text_encoder):
    (features,) = load_text_encoder(text_encoder)([PROMPT])
    ids = AutoTokenizer.from_pretrained(text_encoder)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = T5EncoderModel.from_pretrained(text_encoder)(ids).last_hidden_state[0]
    assert len(features) == 7  # six words and the end token
    torch.testing.assert_close(features, theirs, atol=1e-5, rtol=0)


def moved(tensors, **starts: str):
    """Keys that begin with ``encoder`` or ``shared`` begin with something else."""
    return {
        starts.get(key.partition(".")[0], key.partition(".")[0] + ".")
        + key.partition(".")[2]: value
        for key, value in tensors.items()
    }


PACKAGINGS = {
    "as transformers": {},
    "embed_tokens": {"shared": "encoder.embed_tokens."},
    "no prefix": {"encoder": ""},
    "text_encoder": {"encoder": "text_encoder.", "shared": "text_encoder.shared."},
    "text_model": {"encoder": "text_model.encoder.", "shared": "text_model.shared."},
    "no prefix, embed_tokens": {"encoder": "", "shared": "embed_tokens."},
    "in a checkpoint": {"encoder": "t5.transformer.encoder.", "shared": "t5.transformer.shared."},
}


@pytest.mark.parametrize("packaging", PACKAGINGS)
def test_single_files_of_every_packaging(packaging, text_encoder, tmp_path):
    (want,) = load_text_encoder(text_encoder)([PROMPT])
    tensors = moved(load_file(text_encoder / "model.safetensors"), **PACKAGINGS[packaging])
    save_file(tensors, tmp_path / "t5.safetensors")
    shutil.copy(text_encoder / "tokenizer.json", tmp_path)
    assert is_t5(names_in(tmp_path / "t5.safetensors"))
    (got,) = load_text_encoder(tmp_path / "t5.safetensors")([PROMPT])
    assert torch.equal(got, want)


def test_decoder_is_left_out(text_encoder, tmp_path):
    """The whole of flan-T5, in shards that cut through the encoder."""
    whole = random_t5(True, T5ForConditionalGeneration, num_decoder_layers=2)
    whole.save_pretrained(tmp_path, max_shard_size="600KB")
    shutil.copy(text_encoder / "tokenizer.json", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    file = read_t5(tmp_path)
    assert not any("decoder" in key or "lm_head" in key for key in file.tensors)
    ids = torch.randint(0, 50, (1, 9))
    with torch.no_grad():
        want = whole.encoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(build_t5(file, tmp_path)(ids), want, atol=1e-5, rtol=0)


def test_tokenizer_carried_in_the_header(text_encoder, tmp_path):
    carried = (text_encoder / "tokenizer.json").read_text()
    tensors = load_file(text_encoder / "model.safetensors")
    save_file(tensors, tmp_path / "t5.safetensors", {"tokenizer.json": carried})
    (want,) = load_text_encoder(text_encoder)([PROMPT])
    assert torch.equal(load_text_encoder(tmp_path / "t5.safetensors")([PROMPT])[0], want)
    # another model's next to it changes nothing
    other = json.loads(carried)
    other["model"]["vocab"] = {word: 0 for word in other["model"]["vocab"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a cat").ids[:2] == [0, 0]
    assert torch.equal(load_text_encoder(tmp_path / "t5.safetensors")([PROMPT])[0], want)


def quantized(tensors, scale_name: str):
    """Weights of the layers in fp8 with a scale each, as ComfyUI's scaled checkpoints have."""
    found = {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}
    for key, tensor in tensors.items():
        if "SelfAttention" in key and "bias" not in key:
            found[key] = (tensor / 0.01).to(torch.float8_e4m3fn)
            found[f"{key.removesuffix('.weight')}.{scale_name}"] = torch.tensor(0.01)
        else:
            found[key] = tensor
    return found


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scales_are_never_left_out(scale_name, text_encoder, tmp_path):
    tensors = load_file(text_encoder / "model.safetensors")
    save_file(quantized(tensors, scale_name), tmp_path / "t5.safetensors")
    shutil.copy(text_encoder / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match="is quantized with scales") as caught:
        load_text_encoder(tmp_path / "t5.safetensors")
    assert "\n" not in str(caught.value)
    # the host applies them itself
    kept = read_t5(tmp_path / "t5.safetensors").tensors
    assert sum(key.endswith(scale_name) for key in kept) == 8 and "scaled_fp8" in kept


def change(name: str, value):
    return lambda tensors: tensors | {name: value}


def without(part: str):
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
KEYS = "encoder.block.0.layer.0.SelfAttention.k.weight"
BAD = {
    "of another kind": (lambda tensors: {"double_blocks.0.x": torch.ones(1)}, "diffusion model"),
    "of UMT5": (change(BIAS.format(1), torch.ones(32, 4)), "is a text encoder, not a T5"),
    "with a piece missing": (without(KEYS), "lacks 1 of"),
    "with no first layer": (without("block.0.layer.1"), "lacks the tensor"),
    "of another shape": (change(KEYS, torch.ones(3)), "has shape"),
    "with no heads": (change(BIAS.format(0), torch.ones(32, 0)), "cannot be read"),
    "with one bucket": (
        change(BIAS.format(0), torch.ones(1, 4)),
        "buckets of relative positions must be .*, not 1",
    ),
    "with another's words": (
        change("shared.weight", torch.ones(5, 256)),
        "has 12 words and the text",
    ),
    "with a flat embedding": (change("shared.weight", torch.ones(12)), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence(case, text_encoder, tmp_path):
    edit, words = BAD[case]
    save_file(edit(load_file(text_encoder / "model.safetensors")), tmp_path / "t5.safetensors")
    shutil.copy(text_encoder / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_text_encoder(tmp_path / "t5.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "{}", "[" * 100_000, "\udcff"])
def test_an_invalid_tokenizer_is_refused(text, text_encoder, tmp_path):
    shutil.copy(text_encoder / "model.safetensors", tmp_path / "t5.safetensors")
    with pytest.raises(CheckpointError, match=r"There is no .*tokenizer.json"):
        load_text_encoder(tmp_path / "t5.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        CheckpointError, match=r"tokenizer.json for .* is not valid|tokenizer.json' is truncated"
    ):
        load_text_encoder(tmp_path / "t5.safetensors")


def test_starting_needs_neither_transformers_nor_a_compiler(text_encoder):
    """Both would take seconds to import."""
    load = "from diversevar_core.text.encoder import load_text_encoder; import sys;"
    load += "load_text_encoder(sys.argv[1])"
    see = "print(*sorted({'transformers', 'torch._dynamo', 'sympy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{load}; {see}", text_encoder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
