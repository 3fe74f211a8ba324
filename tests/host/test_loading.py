"""Every way that the host keeps weights, without a card: what it loads, and what it samples."""

import json
import re
from contextlib import ExitStack
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import write_case, write_text_encoder
from comfy_host import DYNAMIC, ROOT, Host, find
from safetensors.torch import load_file, save_file

EMOJI = ROOT / "models" / "emoji-small" / "transformer.safetensors"
TYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
FAMILIES = ("emoji-small", "infinity", "var")
# how weights are kept -> the type that the blocks' matrices then have, None as in the file
WAYS = {
    "default": None,
    "fp64_unet": None,
    "fp32_unet": None,
    "bf16_unet": "bf16",
    "fp16_unet": "fp16",
    "fp8_e4m3fn_unet": "fp8_e4m3fn",
    "fp8_e5m2_unet": "fp8_e5m2",
    "fp8_e4m3fn": "fp8_e4m3fn",
    "fp8_e4m3fn_fast": "fp8_e4m3fn",
    "fp8_e5m2": "fp8_e5m2",
}


QUANTIZED = {
    "emoji-small": "marks",
    "infinity": "old",
    "var": "header",
}  # format of a file's scales


# how else trainers call the same layers: of which LoRA, what of its names, and what in its place
SPELLINGS = {
    "module": ("official", "diffusion_model.", "module."),
    "wrapped": ("official", "diffusion_model.", "base_model.model._orig_mod.module."),
    "compiled": ("official", "diffusion_model.", "transformer._orig_mod."),
    "lycoris": ("kohya", "lora_unet_", "lycoris_"),
    "lora_transformer": ("kohya", "lora_unet_", "lora_transformer_"),
}
LARGER = r"' was made for another model: for blocks\.0.*weight it has \[(\d+), 4\] and \[4, (\d+)\]"
# a broken LoRA -> words of the error
ODD = {
    "of a larger model": LARGER + r", and this model's is \[\d+, \d+\]; choose",
    "of two ranks": r"it has \[\d+, 3\] and \[4, \d+\], and this model's is",
    "of scalars": r"it has \[\] and \[\], and this model's is",
    "of nan": "lora_B.weight' contains NaN or infinity",
    "of inf": "lora_A.weight' contains NaN or infinity",
    "of one half": "lacks '.*lora_A.weight', half of a layer; it is broken",
    "of the other half": "has 1 tensors that cannot be used .*lora_A.weight'",
    "of a nan alpha": "alpha' contains NaN or infinity",
    "of peft's dora": "has 1 tensors that cannot be used .*lora_magnitude_vector'",
    "of saved modules": "has 1 tensors that cannot be used .*'head.weight'",
    "of a wrong difference": r"it has \[3, 3\], and this model's is",
    "of other hadamard factors": r"it has \[4, 4\] and .*, and this model's is",
}


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is one of the blocks' matrices."""
    return "block" in name and name.endswith(".weight") and tensor.ndim == 2


def write_models(models: Path) -> None:
    """The tiny models under the names of their families, and what becomes of them in each type."""
    for folder in ("diffusion_models", "vae", "text_encoders", "loras"):
        (models / folder).mkdir(parents=True)
    files = {"emoji-small": EMOJI}
    for family in ("infinity", "var"):
        case = write_case(f"{family}_plain", models)
        for path, folder in ((case.model, "diffusion_models"), (case.vae, "vae")):
            for file in (path, path.with_suffix(".json")):
                file.rename(models / folder / f"{family}{file.suffix}")
        files[family] = models / "diffusion_models" / f"{family}.safetensors"
    write_text_encoders(models / "text_encoders")
    write_loras(models, files["infinity"])
    write_wrong(models, files["infinity"])
    for family, file in files.items():
        plain, quantized, header = quantize(load_file(file), QUANTIZED[family])
        write(models, f"{family} dequantized", plain, file)
        write(models, f"{family} quantized", quantized, file, header)
        small = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}
        write(models, f"{family} in float8", small, file)
        write(models, f"{family} of float8", {name: t.float() for name, t in small.items()}, file)
    for family, file in files.items():
        for kind, dtype in TYPES.items():
            tensors = {
                name: (tensor.to(dtype) if is_matrix(name, tensor) else tensor).float()
                for name, tensor in load_file(file).items()
            }
            write(models, f"{family}_{kind}", tensors, file)


def write(models: Path, name: str, tensors: dict, like: Path, header: dict | None = None) -> None:
    """A transformer's file with the facts of another."""
    facts = like.with_suffix(".json")
    text = facts.read_text() if facts.exists() else json.dumps({"patch_nums": [1, 2, 4, 6, 8]})
    path = models / "diffusion_models" / f"{name}.safetensors"
    save_file(tensors, path, header)
    path.with_suffix(".json").write_text(text)


def quantize(tensors: dict, layout: str) -> tuple[dict, dict, dict | None]:
    """Scaled float8 by a plain rule: the values that it stands for, the file, its header."""
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    file, layers, mark = dict(plain), {}, {"format": "float8_e4m3fn"}
    for name, tensor in plain.items():
        if not is_matrix(name, tensor):
            continue
        scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        file[name] = (tensor / scale).to(torch.float8_e4m3fn)
        plain[name] = file[name].float() * scale
        layer = name.removesuffix(".weight")
        file[f"{layer}.{'scale_weight' if layout == 'old' else 'weight_scale'}"] = scale
        layers[layer] = mark
        if layout == "marks":
            words = json.dumps(mark).encode()
            file[f"{layer}.comfy_quant"] = torch.tensor(list(words), dtype=torch.uint8)
    if layout == "old":
        file["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    header = {"_quantization_metadata": json.dumps({"layers": layers})}
    return plain, file, header if layout == "header" else None


def write_text_encoders(folder: Path) -> None:
    """A tiny T5, and scaled float8 of it."""
    layouts = {"quantized": "marks", "scaled": "old", "headed": "header", "unmarked": "none"}
    for name in ("infinity", "t5 dequantized", *(f"t5 {name}" for name in layouts)):
        write_text_encoder(folder / name)
    tensors = load_file(folder / "infinity" / "model.safetensors")
    for name, layout in layouts.items():
        plain, file, header = quantize(tensors, layout)
        save_file(file, folder / f"t5 {name}" / "model.safetensors", header)
    save_file(plain, folder / "t5 dequantized" / "model.safetensors")


def write_loras(models: Path, model: Path) -> None:
    """A random LoRA in two layouts, and the weights that it makes at two strengths."""
    tensors, random = load_file(model), torch.Generator().manual_seed(0)
    official, kohya, merged = {}, {}, {0.5: dict(tensors), 0.75: dict(tensors)}
    for name, tensor in tensors.items():
        if not is_matrix(name, tensor):
            continue
        up, down = (0.3 * torch.randn(n, 4, generator=random) for n in tensor.shape)
        layer = name.removesuffix(".weight")
        peft = f"diffusion_model.{layer}"
        official |= {f"{peft}.lora_B.weight": up, f"{peft}.lora_A.weight": down.T.contiguous()}
        under = "lora_unet_" + layer.replace(".", "_")
        kohya |= {f"{under}.lora_up.weight": up, f"{under}.lora_down.weight": down.T.contiguous()}
        for strength, whole in merged.items():
            whole[name] = tensor + strength * (up @ down.T)
    save_odd_loras(models / "loras", official, kohya)
    save_peft_loras(models / "loras", official)
    save_file(official, models / "loras" / "official.safetensors")
    save_file(kohya, models / "loras" / "kohya.safetensors")
    write(models, "merged half", merged[0.5], model)
    write(models, "merged three quarters", merged[0.75], model)


def save_odd_loras(folder: Path, official: dict, kohya: dict) -> None:
    """The LoRA under other prefixes, and its first layer broken in every way."""
    for name, (like, before, after) in SPELLINGS.items():
        lora = official if like == "official" else kohya
        renamed = {key.replace(before, after, 1): tensor for key, tensor in lora.items()}
        save_file(renamed, folder / f"{name}.safetensors")
    (folder / "module.json").write_text("[1]")  # a model's would be refused
    first = next(iter(official)).removesuffix(".lora_B.weight")
    up, down = (official[f"{first}.lora_{half}.weight"] for half in "BA")
    odd = {
        "of a larger model": (up.repeat(2, 1), down.repeat(1, 2)),
        "of two ranks": (up[:, :3].contiguous(), down),
        "of scalars": (up[0, 0].clone(), down[0, 0].clone()),
        "of nan": (up * torch.nan, down),
        "of inf": (up, down * torch.inf),
        "of one half": (up, None),
        "of the other half": (None, down),
        "of a nan alpha": (up, down),
        "of peft's dora": (up, down),
        "of saved modules": (up, down),
    }
    more = {
        "of a nan alpha": {"alpha": torch.tensor(torch.nan)},
        "of peft's dora": {"lora_magnitude_vector": torch.ones(len(up))},
        "of a wrong difference": {"diff": torch.zeros(3, 3)},
        "of other hadamard factors": {
            f"hada_w{i}_{half}": torch.ones(4, 4) for i in (1, 2) for half in "ab"
        },
    }
    assert set(ODD) == odd.keys() | more.keys()
    for name in ODD:
        halves = zip(("lora_B.weight", "lora_A.weight"), odd.get(name, (None, None)), strict=True)
        tensors = {half: tensor for half, tensor in halves if tensor is not None}
        tensors |= more.get(name, {})
        lora = official | {f"{first}.{part}": tensor for part, tensor in tensors.items()}
        for half in {"lora_B.weight", "lora_A.weight"} - tensors.keys():
            del lora[f"{first}.{half}"]
        if name == "of saved modules":
            lora["base_model.model.head.weight"] = torch.ones(2, 2)
        save_file(lora, folder / f"{name}.safetensors")


def save_peft_loras(folder: Path, official: dict) -> None:
    """The LoRA as PEFT saves it, each to be scaled by one: its config makes up for the numbers."""
    name = next(name for name in official if name.endswith("lora_A.weight"))
    first, rank = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"), 4
    configs = {
        "alpha": ({"lora_alpha": 16}, 4.0, 4.0),
        "rslora": ({"lora_alpha": 16, "use_rslora": True}, 8.0, 8.0),
        "pattern": ({"lora_alpha": 8, "alpha_pattern": {first: 1}}, 2.0, 0.25),
    }
    for kind, (config, scale, of_first) in configs.items():
        (folder / kind).mkdir()
        tensors = {
            key.replace("diffusion_model.", "base_model.model."): tensor
            / (1 if "lora_A" in key else of_first if f".{first}.lora" in key else scale)
            for key, tensor in official.items()
        }
        save_file(tensors, folder / kind / "adapter_model.safetensors")
        (folder / kind / "adapter_config.json").write_text(json.dumps({"r": rank} | config))


def write_wrong(models: Path, model: Path) -> None:
    """Files with a matrix turned, without one, and with one too many."""
    tensors = load_file(model)
    name = next(name for name in tensors if name.endswith("ffn.fc2.weight"))
    write(models, "transposed", tensors | {name: tensors[name].T.contiguous()}, model)
    write(models, "lacking", {n: tensor for n, tensor in tensors.items() if n != name}, model)
    _, marked, _ = quantize(tensors, "marks")
    del marked[name]
    write(models, "quantized and lacking", marked, model)
    write(models, "unknown", tensors | {"word_embed.more": torch.zeros(1)}, model)
    eight = {name: tensors[name].to(torch.int8), name.replace("weight", "SCB"): torch.zeros(2)}
    write(models, "bitsandbytes, 8 bits", tensors | eight, model)
    four = {name: torch.zeros(8, 1, dtype=torch.uint8), f"{name}.absmax": torch.zeros(2)}
    write(models, "bitsandbytes, 4 bits", tensors | four, model)


@pytest.fixture(scope="session")
def inside(inside):
    """The host in this process, with the models."""
    write_models(inside.MODELS)
    return inside


@pytest.fixture(scope="session")
def plain(inside):
    """The latent of a file whose weights are kept as they are, on one device."""
    return cache(
        lambda family, name=None: inside.image(family, inside.load(name or inside.file(family)))
    )


def under(inside, mode: str) -> ExitStack:
    """The host's memory management: plain, or dynamic."""
    stack = ExitStack()
    if mode == "dynamic":
        stack.enter_context(inside.dynamic())
    return stack


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["plain", "dynamic"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_the_same_weights_kept_plainly(inside, plain, family, mode, way):
    kind = WAYS[way]
    expected = plain(family, f"{family}_{kind}.safetensors" if kind else None)
    with under(inside, mode) as ways:
        if way.endswith("_unet"):
            ways.enter_context(inside.patched(inside.args, way, True))
        weight_dtype = "default" if way.endswith("_unet") else way
        latent = inside.image(family, inside.load(inside.file(family), weight_dtype=weight_dtype))
    assert torch.equal(latent, expected)
    assert latent.isfinite().all() and latent.std() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["plain", "dynamic"])
@pytest.mark.parametrize(
    "stored, values", [("quantized", "dequantized"), ("in float8", "of float8")]
)
def test_quantized_files_and_files_of_float8_alone_give_their_values(
    inside, plain, family, mode, stored, values
):
    with under(inside, mode):
        latent = inside.image(family, inside.load(f"{family} {stored}.safetensors"))
    assert torch.equal(latent, plain(family, f"{family} {values}.safetensors"))


@pytest.mark.parametrize("encoder", ["t5 quantized", "t5 scaled", "t5 headed"])
def test_scales_of_a_quantized_text_encoder_are_applied(inside, encoder):
    scaled, values, unscaled = (
        inside.text(name)[0][0] for name in (encoder, "t5 dequantized", "infinity")
    )
    torch.testing.assert_close(scaled, values, atol=1e-5, rtol=0)
    assert not torch.equal(values, unscaled)


def test_a_text_encoder_whose_scales_cannot_be_read_is_refused(inside):
    with pytest.raises(ValueError, match="is quantized in a format that is not supported"):
        inside.text("t5 unmarked")


def test_a_text_encoder_reads_the_same_under_dynamic_vram(inside):
    expected = inside.text("infinity")[0][0]
    with inside.dynamic():
        assert torch.equal(inside.text("infinity")[0][0], expected)


def tuned(inside, name: str, strength: float = 0.5, model=None):
    """The model with a LoRA."""
    model = model or inside.load("infinity.safetensors")
    inputs = {"lora_name": f"{name}.safetensors", "strength_model": strength}
    return inside.node("LoadLora", model=model, **inputs)[0]


def test_a_lora_is_the_merged_weights_and_taking_it_off_restores_them(inside, plain):
    model = inside.load("infinity.safetensors")
    before, half = inside.weights(model), plain("infinity", "merged half.safetensors")
    official, kohya = (tuned(inside, name, model=model) for name in ("official", "kohya"))
    for lora in (official, kohya):
        torch.testing.assert_close(inside.image("infinity", lora), half)
    torch.testing.assert_close(inside.image("infinity", official, inside.stream), half)
    both = inside.image("infinity", tuned(inside, "kohya", 0.25, official))
    torch.testing.assert_close(both, plain("infinity", "merged three quarters.safetensors"))
    assert not torch.equal(both, half)
    assert torch.equal(inside.image("infinity", model), plain("infinity"))
    inside.management.unload_all_models()
    after = inside.weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_is_read_under_every_trainers_names(inside, plain, spelling):
    latent = inside.image("infinity", tuned(inside, spelling))
    torch.testing.assert_close(latent, plain("infinity", "merged half.safetensors"))


@pytest.mark.parametrize("kind", ["alpha", "rslora", "pattern"])
def test_pefts_config_says_how_strong_its_lora_is(inside, plain, kind):
    latent = inside.image("infinity", tuned(inside, f"{kind}/adapter_model"))
    torch.testing.assert_close(latent, plain("infinity", "merged half.safetensors"))


@pytest.mark.parametrize("odd", ODD)
def test_a_broken_lora_is_refused_with_its_reason(inside, odd):
    with pytest.raises(ValueError, match=ODD[odd]) as error:
        tuned(inside, odd)
    assert type(error.value).__name__ == "UserError"
    assert f"{odd}.safetensors'" in str(error.value)


def test_a_lora_has_a_finite_strength_and_a_listed_name_and_is_of_this_model(inside):
    with pytest.raises(ValueError, match="strength_model must be a number from -10.0 to 10"):
        tuned(inside, "kohya", float("nan"))
    for name in ("", "../vae/var"):
        with pytest.raises(ValueError, match="There is no '.*' in models/loras"):
            tuned(inside, name)
    with pytest.raises(ValueError, match=r"kohya.safetensors' has \d+ tensors that cannot be used"):
        tuned(inside, "kohya", model=inside.load("var.safetensors"))


@pytest.mark.parametrize("kind, inputs", [("Measure", {}), ("Select", {"count": 1})])
def test_odd_images_are_measured_as_rgb_or_refused(inside, kind, inputs):
    for channels in (1, 3, 4):
        inside.node(kind, images=torch.rand(2, 8, 8, channels), **inputs)
    nan = torch.full((2, 8, 8, 3), torch.nan)
    for images, words in (
        (torch.rand(2, 8, 8, 2), "has 2 channels"),
        (torch.rand(0, 8, 8, 3), "is empty"),
        (nan, "images contains NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=words):
            inside.node(kind, images=images, **inputs)


class Vision:
    """CLIP vision; if it evicts, the host takes every other model off the card for it."""

    def __init__(self, evict):
        self.evict = evict

    def encode_image(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.evict()
        return {"image_embeds": images.mean(dim=(1, 2))}


def started(inside, evict=lambda: None) -> tuple:
    """Diverse starts that are compared as small images, by a VAE of their own; and that VAE."""
    (vae,) = inside.node("LoadVAE", vae_name="infinity.safetensors")
    compare = {"compare": "small images", "vae": vae, "clip_vision": Vision(evict)}
    return inside.node("Seeds", candidates=20, side=4, compare=compare)[0], vae


def test_a_lora_stays_on_when_comparing_starts_takes_the_models_place(inside):
    model = tuned(inside, "official")
    kept, evicted = (
        inside.image("infinity", model, batch=2, method=started(inside, evict)[0])
        for evict in (lambda: None, inside.management.unload_all_models)
    )
    assert torch.equal(kept, evicted)


def test_the_vae_that_compares_starts_is_loaded_by_the_host(inside):
    """With its memory, as any VAE; the sampler's own is another."""
    method, vae = started(inside)
    asked = []

    def loaded(patchers: list, room: float) -> None:
        asked.extend(room for patcher in patchers if patcher is vae.patcher)

    inside.image("infinity", inside.load("infinity.safetensors"), loaded, batch=2, method=method)
    assert len(asked) == 2 and min(asked) > 0  # sixteen candidates at once, and four


def test_images_in_half_precision_are_edited_within_a_mask(inside):
    """The host's --fp16-intermediates."""
    model, (vae,) = inside.load("emoji-edit"), inside.node("LoadVAE", vae_name="emoji-small")
    inputs = {"model": model, "vae": vae, "positive": inside.text("emoji-edit"), "seed": 1}
    inputs |= {"batch_size": 1, "sampling": {"sampling": "official (cfg 3)"}}
    inputs |= {"guidance_start": 0, "guidance_end": 0, "exact_batch": False}
    shades, mask = torch.linspace(0, 1, 64)[:, None].expand(1, 64, 64, 3), torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    edits = []
    for kind in (torch.float32, torch.float16):
        with inside.patched(inside.args, "fp16_intermediates", kind == torch.float16):
            edited, *_ = inside.node("Edit", **inputs, image=shades.to(kind), mask=mask.to(kind))
        edits.append(edited.float())
    whole, half = edits
    assert (whole - half).abs().mean() < 0.02
    assert not torch.equal(half[:, :32], half[:, 32:])


@pytest.fixture
def compiling(inside):
    """A compiled model with a card's kernel.

    Its graphs are run without generating code for this CPU; a test of the core generates it.
    """
    import comfy.ldm.modules.attention as kernels

    usual = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("aot_eager")
    with (
        inside.dynamic(),
        inside.patched(inside.ours, "optimized_attention", kernels.attention_pytorch),
    ):
        model = inside.load("infinity.safetensors", torch_compile=True)
        with_kernel(inside, model)
        yield model
    torch.compiler.set_default_backend(usual)


def with_kernel(inside, model) -> None:
    """Use the host's attention, as on a card."""
    for part in model.model.modules():
        if hasattr(part, "attention"):
            part.attention = inside.ours.attention


def test_a_compiled_model_draws_the_same_tokens_also_with_a_lora(inside, plain, compiling):
    from torch._dynamo.utils import counters

    counters.clear()
    drawn = inside.image("infinity", compiling)
    streamed = inside.image("infinity", tuned(inside, "official", model=compiling), inside.stream)
    assert counters["stats"]["unique_graphs"] > 1 and not counters["graph_break"]
    expected = [plain("infinity"), plain("infinity", "merged half.safetensors")]
    assert torch.equal(drawn, expected[0])
    torch.testing.assert_close(streamed, expected[1])


def test_where_torch_cannot_compile_the_loader_says_so(inside):
    from torch._inductor import config

    torch.compiler.reset()
    words = r"torch.compile does not work here \(.*; turn it off\."
    # torch's own patch: pytest's deletes this setting instead of putting it back
    with config.patch({"cpp.cxx": ("/nowhere",)}), pytest.raises(ValueError, match=words):
        inside.load("infinity.safetensors", torch_compile=True)


@pytest.mark.parametrize(
    "name, words",
    [
        ("transposed", "fc2.weight' has shape"),
        ("lacking", "lacks 1 "),
        ("quantized and lacking", "lacks 1 "),
        ("unknown", "has 1 tensors that no Infinity release has"),
        ("bitsandbytes, 8 bits", "is quantized by bitsandbytes"),
        ("bitsandbytes, 4 bits", "is quantized by bitsandbytes"),
    ],
)
def test_wrong_files_are_refused_by_layers_that_start_empty(inside, name, words):
    with inside.dynamic(), pytest.raises(ValueError, match=words):
        assert inside.comfy.ops.manual_cast.Linear(2, 2).weight is None
        inside.load(f"{name}.safetensors")


@pytest.mark.parametrize("mode", ["plain", "dynamic"])
def test_weights_stay_in_the_file_as_they_are(inside, mode):
    with under(inside, mode):
        model = inside.load("emoji-small").model
    assert all(map(inside.is_mapped, model.parameters()))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_under_dynamic_vram_the_host_knows_where_weights_lie_in_the_file(inside):
    """So that it reads them from the file straight to the card."""
    with inside.dynamic():
        (vae,) = inside.node("LoadVAE", vae_name="emoji-small")
        parts = inside.load("emoji-small").model, vae.first_stage_model
    for part in parts:
        for name, weight in part.named_parameters():
            place = getattr(weight.untyped_storage(), "_comfy_tensor_file_slice", None)
            assert place is not None and place.size == weight.nbytes, name


def test_without_mmap_no_weight_is_in_a_file_that_may_be_cut(inside, tmp_path):
    pickled = inside.MODELS / "diffusion_models" / "pickled.pth"
    torch.save(load_file(EMOJI), pickled)
    pickled.with_suffix(".json").write_text(json.dumps({"patch_nums": [1, 2, 4, 6, 8]}))
    with (
        inside.patched(inside.args, "disable_mmap", True),
        inside.patched(inside.comfy.utils, "DISABLE_MMAP", True),
    ):
        models = [inside.load(name) for name in ("emoji-small", "pickled.pth")]
        (vae,) = inside.node("LoadVAE", vae_name="emoji-small")
        (clip,) = inside.node("LoadCLIP", clip_name="emoji-small")
    parts = [model.model for model in models] + [vae.first_stage_model, clip.cond_stage_model]
    assert not any(inside.is_mapped(weight) for part in parts for weight in part.parameters())


def test_callbacks_run_around_sampling_and_after_a_cancel(inside):
    from comfy.patcher_extension import CallbacksMP

    model, seen = inside.load("infinity.safetensors"), []
    for kind in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        model.add_callback(kind, lambda patcher, kind=kind: seen.append(kind))
    inside.image("infinity", model)
    with pytest.raises(inside.management.InterruptProcessingException):
        cancel = inside.management.interrupt_current_processing
        inside.image("infinity", model, lambda patchers, room: cancel())
    assert seen == 2 * ["on_pre_run", "on_cleanup"]


def test_previews_have_the_images_shape_and_the_hosts_size(inside):
    from comfy.cli_args import LatentPreviewMethod

    frames = []
    set_hook = inside.comfy.utils.set_progress_bar_global_hook
    set_hook(lambda at, of, frame, **_: frames.append(frame))
    with (
        inside.patched(inside.args, "preview_method", LatentPreviewMethod.Auto),
        inside.patched(inside.args, "preview_size", 300),
    ):
        inside.image("infinity", inside.load("infinity.safetensors"), aspect="1:2 portrait")
    set_hook(None)
    kinds, images, sides = zip(*frames, strict=True)
    assert set(kinds) == {"JPEG"} and set(sides) == {300}
    assert images[-1].height == 2 * images[-1].width


def test_the_memory_that_is_requested_is_what_a_batch_takes(inside, tmp_path):
    """Within a fourth; the allocator says what it takes."""
    model, batch = inside.load("emoji-small"), 16
    (room,) = inside.rooms("emoji-small", model, batch=batch)
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        inside.image("emoji-small", model, batch=batch)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    decoding = min(e["ts"] for e in events if e.get("name") == "aten::conv2d")
    taken = [e for e in events if e.get("name") == "[memory]" and e["ts"] < decoding]
    peak = max(accumulate(e["args"]["Bytes"] for e in sorted(taken, key=lambda e: e["ts"])))
    assert peak == pytest.approx(room, rel=0.25)


def custom(cfg: float) -> dict:
    return {"sampling": "custom", "cfg": cfg, "temperature": 0.5, "top_p": 0.97, "top_k": 0}


def test_memory_is_requested_for_the_rows_and_keys_that_are_kept(inside):
    model = inside.load("infinity.safetensors")
    (few,) = inside.node("ScaleKV", budget=0.1)
    (unguided,), (guided,), (few_keys,) = (
        inside.rooms("infinity", model, sampling=custom(cfg), method=method)
        for cfg, method in ((1.0, None), (4.0, None), (4.0, few))
    )
    assert 2 * unguided == guided > few_keys > 0


def test_memory_is_requested_for_the_starts_that_are_drawn_at_once(inside):
    model, rooms = inside.load("infinity.safetensors"), []
    for batch, candidates, side in (
        (2, 1, 128),
        (16, 1, 128),
        (2, 64, 1),
        (2, 64, 128),
        (1, 64, 9),
    ):
        compare = {"compare": "token maps"}
        (starts,) = inside.node("Seeds", candidates=candidates, side=side, compare=compare)
        rooms.append(inside.rooms("infinity", model, batch=batch, method=starts)[0])
    two, sixteen, small, sixteen_at_once, one = rooms
    assert two == small < sixteen_at_once == sixteen and one == two / 2


def test_memory_is_requested_for_what_blocks_added_to_the_last_map_before_pruning(inside):
    model, rooms = inside.load("infinity.safetensors"), []
    for prune in (0.0, 0.5):
        (fast,) = inside.node("FastVAR", prune=prune, skip=2)
        rooms += inside.rooms("infinity", model, method=fast)
    whole, pruned = rooms
    rows, tokens, width, blocks = 2, 6 * 6, 256, 4
    assert pruned - whole == rows * tokens * width * blocks * torch.float32.itemsize


def test_memory_is_requested_for_the_image_that_travel_decodes(inside):
    model, (vae, _) = inside.load("infinity.safetensors"), inside.others("infinity", False)
    (travel,) = inside.node("Travel", side=4)
    (room,) = inside.rooms("infinity", model, method=travel)
    decoding = vae.memory_used_decode(inside.image("infinity", model).shape, vae.vae_dtype)
    assert room == decoding > inside.rooms("infinity", model)[0]


def test_a_large_image_is_decoded_in_tiles_that_fit_where_the_whole_does_not(inside):
    """A million pixels decoded on a card that has memory for a quarter of them."""
    (vae,) = inside.node("LoadVAE", vae_name="infinity.safetensors")
    side = 1024 // vae.upscale_ratio
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(1, vae.latent_channels, side, side, generator=random).sign() / 4
    decode, most = vae.first_stage_model.decode, latent.numel() // 4

    def decode_some(part: torch.Tensor) -> torch.Tensor:
        if part.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(part)

    with torch.inference_mode():
        whole = vae.decode(latent)
        with inside.patched(vae.first_stage_model, "decode", decode_some):
            tiled = vae.decode(latent)
    assert whole.shape == tiled.shape and (whole - tiled).abs().mean() < 0.05


def test_a_batch_is_computed_together_or_one_by_one(inside, plain):
    model, rows = inside.load("infinity.safetensors"), set()
    model.model.blocks[0].register_forward_pre_hook(lambda _, inputs: rows.add(len(inputs[0])))
    for exact_batch, expected in ((False, {6}), (True, {2})):
        latent = inside.image("infinity", model, batch=3, exact_batch=exact_batch)
        assert rows == expected and torch.equal(latent[:1], plain("infinity"))
        rows.clear()


def test_the_host_can_load_a_copy(inside, plain):
    model = inside.load("infinity.safetensors")
    (vae,), (clip,) = (
        inside.node("LoadVAE", vae_name="emoji-small"),
        inside.node("LoadCLIP", clip_name="emoji-small"),
    )
    copies = [patcher.clone(force_deepcopy=True) for patcher in (model, vae.patcher, clip.patcher)]
    for patcher, copy in zip((model, vae.patcher, clip.patcher), copies, strict=True):
        assert copy.model is not patcher.model
    assert torch.equal(inside.image("infinity", copies[0]), plain("infinity"))


def test_decoding_counts_more_memory_on_amd(inside):
    def estimate() -> float:
        (vae,) = inside.node("LoadVAE", vae_name="emoji-small")
        return vae.memory_used_decode((1, 1, 8, 8), torch.float32)

    other = estimate()
    with inside.patched(inside.management, "is_amd", lambda: True):
        assert estimate() / other == pytest.approx(2.73)


@pytest.mark.parametrize("kernel", ["basic", "sub_quad", "split", "pytorch"])
def test_the_hosts_attention_kernels_use_the_given_scale(inside, kernel):
    import comfy.ldm.modules.attention as kernels

    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 16, generator=random)
    expected = (1.5 * q @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    of_kernel = getattr(kernels, f"attention_{kernel}")
    with inside.patched(inside.ours, "optimized_attention", of_kernel):
        torch.testing.assert_close(inside.ours.attention(q, k, v, None, 1.5), expected)


def test_prompts_of_unequal_length_attend_to_no_padding_with_the_hosts_attention(inside):
    """The long prompt, as a negative one, pads the short one."""
    model = inside.load("infinity.safetensors")
    prompts = {"negative": inside.text("infinity", "a red cat on the moon " * 8)}
    expected = inside.image("infinity", model, **prompts)
    with_kernel(inside, model)
    assert torch.equal(inside.image("infinity", model, **prompts), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cards_types_and_kernels_make_much_the_same_image(inside, plain, family, compute):
    with inside.patched(inside.management, "unet_manual_cast", lambda *_: compute):
        model = inside.load(inside.file(family))
    with_kernel(inside, model)
    # a token that turns at a near tie changes what is drawn after it; another seed's has up to .75
    assert (inside.image(family, model) == plain(family)).float().mean() > 0.8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "stored, values", [("", "{}_fp8_e4m3fn"), (" quantized", "{} dequantized")]
)
def test_computing_in_fp8_makes_much_the_same_image(inside, plain, family, stored, values):
    exact = plain(family, f"{values.format(family)}.safetensors")
    name = f"{family} quantized.safetensors" if stored else inside.file(family)
    with inside.patched(inside.management, "supports_fp8_compute", lambda *_: True):
        model = inside.load(name, weight_dtype="default" if stored else "fp8_e4m3fn_fast")
        drawn = inside.image(family, model)
    assert torch.corrcoef(torch.stack((drawn.flatten(), exact.flatten())))[0, 1] > 0.5


def test_cancel_stops_between_maps_if_no_layer_checks_for_it(inside):
    """As in compiled layers."""
    model, (vae, _) = inside.load("var.safetensors"), inside.others("var", False)
    schedule, drawn = model.model.schedule(), []

    def steps():
        for scale in schedule:
            inside.management.interrupt_current_processing(True)
            drawn.append(scale)
            yield SimpleNamespace(scale=scale, f_hat=torch.zeros(1))

    with pytest.raises(inside.management.InterruptProcessingException):
        inside.ours.watch(model, steps(), schedule, vae)
    assert len(drawn) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_can_stay_on_another_device(inside, plain, family):
    latent = inside.image(family, inside.load(inside.file(family)), inside.send_elsewhere)
    assert torch.equal(latent, plain(family))


def test_a_workflow_gives_the_same_images_under_dynamic_vram(host, tmp_path):
    prompt = json.loads(
        (ROOT / "workflows" / "api" / "1 Text to image, works at once.json").read_text()
    )
    expected = host.run(prompt).images
    other = Host(*find(), tmp_path, DYNAMIC)
    outcome = other.run(prompt)
    other.stop()
    assert not re.search("IMPORT FAILED.*dynamic_vram", other.log) and not other.complaints()
    assert outcome.error is None and len(outcome.images) == len(expected) > 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(outcome.images, expected, strict=True))
