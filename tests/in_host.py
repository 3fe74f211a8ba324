"""Run by the host's Python: ``in_host.py HOST PACK MODELS OUT`` loads and samples in every way.

No server: the nodes' own classes run in a process that has imported the host. OUT becomes a
dictionary, saved by torch, of what came out under which name: tensors, or an error's words.
``Elsewhere`` stands in for weights on another device than the one that computes.
"""

import asyncio
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

host, pack, models, out = map(Path, sys.argv[1:])
sys.path[0] = str(host)

from comfy.cli_args import args  # noqa: E402

args.cpu, args.base_directory, args.fp32_text_enc = True, str(models.parent), True

import comfy.memory_management  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402

FLAGS = ("fp32_unet", "bf16_unet", "fp16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet")
TYPES = ("fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
FAMILIES = ("emoji", "infinity", "var")
CPU = torch.device("cpu")


def node(name: str, **inputs) -> tuple:
    """What a node of the pack returns."""
    return nodes.NODE_CLASS_MAPPINGS[f"DiverseVAR{name}"].execute(**inputs).args


def load(name: str, **options):
    """A transformer from its file in ``models``."""
    return node("LoadModel", model_name=name, **options)[0]


def file(family: str) -> str:
    """The choice of a family's transformer, or tokenizer."""
    return family if family == "emoji" else f"{family}.safetensors"


def text(encoder: str) -> list:
    """The conditioning of a prompt."""
    (clip,) = node("LoadTextEncoder", text_encoder_name=encoder)
    return node("EncodeText", clip=clip, prompt="a red apple", negative="")[0]


def picture(family: str, model, prepare=lambda model, vae: None) -> torch.Tensor:
    """The latent of one picture: the sum of its tokens' codes, the same only for the same tokens.

    The family's tokenizer and text encoder have its name. prepare: called with what is loaded.
    """
    (vae,) = node("LoadTokenizer", vae_name=file(family))
    positive = node("ClassLabel", label=3)[0] if family == "var" else text(family)
    prepare(model, vae)
    sampler = {"batch_size": 1, "aspect": "1:1 square", "pixels": "the model's own"}
    numbers = {"diversity": 0.0, "guide_from": 0, "cfg": 0, "tau": 0, "top_k": 0, "top_p": 0}
    (latent,) = node(
        "Sampler", model=model, vae=vae, positive=positive, seed=7, **sampler, **numbers
    )
    assert not vae.decode(latent["samples"]).isnan().any()
    return latent["samples"]


@contextmanager
def dynamic():
    """The host as Dynamic VRAM makes it, but for the card's part: there is no card."""
    plain = comfy.model_patcher.CoreModelPatcher
    comfy.memory_management.aimdo_enabled = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    yield
    comfy.memory_management.aimdo_enabled = False
    comfy.model_patcher.CoreModelPatcher = plain


@contextmanager
def started_with(flag: str):
    """The host as started with a flag."""
    setattr(args, flag, True)
    yield
    setattr(args, flag, False)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a card; only a copy of it, or a move of it, can be computed with.

    Layers of the host's move their weights as they compute. Whatever else reads a weight has to do
    the same, or it fails on a card where the weight was left in main memory.
    """

    MOVES = (torch.Tensor.to, torch.Tensor.copy_, torch.empty_like, torch.Tensor.__getitem__)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("cuda", 0)
        if function not in cls.MOVES and getattr(function, "__name__", "") != "__get__":
            raise RuntimeError(f"{function} was given a weight that is on another device")
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, cls) else a for a in arguments]
        result = function(*plain, **(options or {}))
        sliced = function == torch.Tensor.__getitem__
        return result.as_subclass(cls) if sliced else result


def send_elsewhere(module: torch.nn.Module) -> None:
    """Make every parameter an ``Elsewhere``."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = parameter.data.as_subclass(Elsewhere)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


class Report(dict):
    """What came out, by name."""

    @contextmanager
    def errors(self, name: str):
        """Keep the words of an error under a name."""
        try:
            yield
        except Exception as error:
            self[name] = f"{type(error).__name__}: {error}"


def matrix(report: Report) -> None:
    """Every way to keep weights, for every family, with and without Dynamic VRAM."""
    for family in FAMILIES:
        for kind in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"):
            name = f"{family} rounded to {kind}"
            with report.errors(name):
                report[name] = picture(family, load(f"{family}_{kind}.safetensors"))
        for mode in ("plain", "dynamic"):
            ways = [("default", None), *((flag, flag) for flag in FLAGS), *((t, None) for t in TYPES)]
            for way, flag in ways:
                name, kind = f"{family} {mode} {way}", "default" if flag else way
                with report.errors(name), ExitStack() as ways:
                    if mode == "dynamic":
                        ways.enter_context(dynamic())
                    if flag:
                        ways.enter_context(started_with(flag))
                    report[name] = picture(family, load(file(family), weight_dtype=kind))


def quantized(report: Report) -> None:
    """Files that keep scales beside their weights."""
    for family in FAMILIES:
        name = f"{family} dequantized"
        with report.errors(name):
            report[name] = picture(family, load(f"{name}.safetensors"))
        for mode in ("plain", "dynamic"):
            name = f"{family} quantized {mode}"
            with report.errors(name), dynamic() if mode == "dynamic" else ExitStack():
                report[name] = picture(family, load(f"{family} quantized.safetensors"))
    for encoder in ("t5 dequantized", "t5 quantized", "t5 scaled", "t5 unmarked"):
        with report.errors(encoder):
            report[encoder] = text(encoder)[0][0]
    with report.errors("t5 dynamic"), dynamic():
        report["t5 dynamic"] = text("infinity")[0][0]
    report["t5 plain"] = text("infinity")[0][0]


def loras(report: Report) -> None:
    """LoRAs on the transformer: in two layouts, together, taken off again, and as weights stream."""
    model = load("infinity.safetensors")
    before = weights(model)
    official, kohya = (
        node("LoadLora", model=model, lora_name=f"{name}.safetensors", strength=0.5)[0]
        for name in ("official", "kohya")
    )
    (both,) = node("LoadLora", model=official, lora_name="kohya.safetensors", strength=0.25)
    report["lora official"] = picture("infinity", official)
    report["lora kohya"] = picture("infinity", kohya)
    report["lora both"] = picture("infinity", both)
    report["lora streamed"] = picture("infinity", official, lambda model, vae: stream(model))
    for name, strength in (("merged half", 0.5), ("merged three quarters", 0.75)):
        report[name] = picture("infinity", load(f"{name}.safetensors"))
    report["lora off"] = picture("infinity", model)
    comfy.model_management.unload_all_models()
    after = weights(model)
    report["lora restores"] = all(torch.equal(before[name], after[name]) for name in before)
    with report.errors("lora of another model"):
        node("LoadLora", model=load("var.safetensors"), lora_name="kohya.safetensors", strength=1.0)


def stream(model) -> None:
    """Load no weight, as a host with too little memory on its card; patch each as it is used."""
    model.partially_unload(CPU, 1e30)
    model.unpatch_model(CPU)
    model.patch_model(CPU, lowvram_model_memory=1)


def elsewhere(report: Report) -> None:
    """Weights that stay on another device."""

    def away(model, vae) -> None:
        comfy.model_management.load_models_gpu([model, vae.patcher])
        send_elsewhere(model.model)
        send_elsewhere(vae.first_stage_model)

    for family in FAMILIES:
        name = f"{family} elsewhere"
        with report.errors(name):
            report[name] = picture(family, load(file(family)), away)


def main() -> None:
    asyncio.run(nodes.load_custom_node(str(pack)))
    report = Report()
    with torch.inference_mode():
        for part in (matrix, quantized, loras, elsewhere):
            with report.errors(part.__name__):
                part(report)
    torch.save(dict(report), out)


main()
