"""Run by the host's Python: ``in_host.py HOST PACK MODELS OUT`` loads and samples in every way.

No server: the nodes' own classes run in a process that has imported the host. OUT becomes a
dictionary, saved by torch, of what came out under which name: tensors, or an error's words.
``Elsewhere`` stands in for weights on another device than the one that computes.
"""

import asyncio
import sys
from contextlib import contextmanager
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


def picture(family: str, model) -> torch.Tensor:
    """The latent of one picture: the sum of its tokens' codes, the same only for the same tokens.

    Where the family's tokenizer and text encoder have the family's name.
    """
    suffix = "" if family == "emoji" else ".safetensors"
    (vae,) = node("LoadTokenizer", vae_name=f"{family}{suffix}")
    if family == "var":
        (positive,) = node("ClassLabel", label=3)
    else:
        (clip,) = node("LoadTextEncoder", text_encoder_name=family)
        positive, _ = node("EncodeText", clip=clip, prompt="a red apple", negative="")
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
def flag(name: str):
    """The host as started with a flag."""
    setattr(args, name, True)
    yield
    setattr(args, name, False)


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a card; only a copy of it, or a move of it, can be computed with.

    Layers of the host's move their weights as they compute. Whatever else reads a weight has to do
    the same, or it fails on a card where the weight was left in main memory.
    """

    MOVES = (torch.Tensor.to, torch.Tensor.copy_, torch.empty_like, torch.Tensor.__getitem__)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.Tensor.device.__get__:
            return torch.device("cuda", 0)
        if function not in cls.MOVES and getattr(function, "__name__", "") != "__get__":
            raise RuntimeError(f"{function} was given a weight that is on another device")
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, cls) else a for a in arguments]
        result = function(*plain, **(options or {}))
        sliced = function is torch.Tensor.__getitem__
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
        name = family if family == "emoji" else f"{family}.safetensors"
        for kind in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"):
            with report.errors(f"{family} rounded to {kind}"):
                model = load(f"{family}_{kind}.safetensors")
                report[f"{family} rounded to {kind}"] = picture(family, model)
        for mode in ("plain", "dynamic"):
            ways = [(None, "default"), *((f, "default") for f in FLAGS), *((None, t) for t in TYPES)]
            for option, kind in ways:
                way = f"{family} {mode} {option or kind}"
                with report.errors(way), flag(option or "cpu"):
                    if mode == "dynamic":
                        with dynamic():
                            report[way] = picture(family, load(name, weight_dtype=kind))
                    else:
                        report[way] = picture(family, load(name, weight_dtype=kind))
                args.cpu = True


def main() -> None:
    asyncio.run(nodes.load_custom_node(str(pack)))
    report = Report()
    with torch.inference_mode():
        matrix(report)
    torch.save(dict(report), out)


main()
