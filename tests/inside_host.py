"""The host's code in this process, without its server, and the pack in it.

Imported only by fixtures, as it changes the process: it needs the host's Python, and its modules
have names such as ``nodes``.
"""

import asyncio
import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from comfy_host import HOW_TO, ROOT, find

if (found := find()) is None:
    pytest.skip(HOW_TO)
path, python = found
if Path(python).parent.resolve() != Path(sys.executable).parent.resolve():
    pytest.skip(f"run pytest with the host's Python, {python}")

BASE = Path(tempfile.mkdtemp())
MODELS = BASE / "models"
CPU = torch.device("cpu")
atexit.register(shutil.rmtree, BASE, ignore_errors=True)

sys.path.insert(0, str(path))  # before the pack's own folder nodes
from comfy.cli_args import args  # noqa: E402

args.cpu, args.base_directory, args.fp32_text_enc = True, str(BASE), True

import comfy.memory_management  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import comfy_aimdo.control  # noqa: E402

import nodes  # noqa: E402

with ThreadPoolExecutor(1) as own:  # a browser's test leaves this thread with a running event loop
    own.submit(asyncio.run, nodes.load_custom_node(str(ROOT))).result()
sys.path.append(sys.path.pop(sys.path.index(str(path))))
ours = sys.modules[nodes.NODE_CLASS_MAPPINGS["DiverseVARLoadModel"].__module__].host
comfy_aimdo.control.init()  # as the host does for Dynamic VRAM; without a card it can map files


@contextmanager
def patched(module, name: str, value) -> Iterator[None]:
    """A module, or other object, with another value under a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, value)
        yield


@contextmanager
def dynamic() -> Iterator[None]:
    """The host with Dynamic VRAM, except the parts that need a GPU."""
    patcher = comfy.model_patcher.ModelPatcherDynamic
    with (
        patched(comfy.memory_management, "aimdo_enabled", True),
        patched(comfy.model_patcher, "CoreModelPatcher", patcher),
    ):
        yield


def node(name: str, **inputs) -> tuple:
    """What a node of the pack returns."""
    kind = nodes.NODE_CLASS_MAPPINGS[f"DiverseVAR{name}"].PREPARE_CLASS_CLONE(None)
    with torch.inference_mode():
        return kind.execute(**inputs).args


def load(name: str, **options):
    """A transformer from its file in ``models``."""
    inputs = {"weight_dtype": "default", "task": "auto", "torch_compile": False} | options
    return node("LoadModel", model_name=name, **inputs)[0]


def file(family: str) -> str:
    """The choice of a family's transformer, or VAE."""
    return family if family == "emoji-small" else f"{family}.safetensors"


@torch.inference_mode()
def text(encoder: str, prompt: str = "a red apple") -> list:
    """The conditioning of a prompt."""
    (clip,) = node("LoadCLIP", clip_name=encoder)
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


@cache
def others(family: str, lazily: bool) -> tuple:
    """The family's VAE and a condition; lazily: loaded under Dynamic VRAM."""
    assert lazily == comfy.memory_management.aimdo_enabled
    condition = (
        node("ImageNetClass", class_name="3 tiger shark")[0] if family == "var" else text(family)
    )
    return node("LoadVAE", vae_name=file(family))[0], condition


def image(family: str, model, loaded=lambda patchers, room: None, **numbers) -> torch.Tensor:
    """The latent of one image: the sum of its tokens' codes, the same only for the same tokens.

    The family's VAE and text encoder have its name. loaded: called whenever the host has
    loaded models, with their patchers and the memory required. numbers: inputs of the sampler.
    """
    vae, positive = others(family, comfy.memory_management.aimdo_enabled)
    size = {"aspect_ratio": numbers.pop("aspect", "1:1 square"), "megapixels": "official"}
    batch = numbers.pop("batch", 1)
    (latent,) = node("EmptyLatent", model=model, vae=vae, batch_size=batch, **size)
    inputs = {"model": model, "vae": vae, "positive": positive, "latent_image": latent, "seed": 7}
    inputs |= {"preset": {"preset": "as published"}, "sampling": {"sampling": "official (cfg 4)"}}
    inputs |= {"guidance_end": 0, "keep_side": 0, "exact_batch": False} | numbers
    load_models = management.load_models_gpu

    def load_and_tell(patchers, memory_required=0, **options) -> None:
        load_models(patchers, memory_required, **options)
        loaded(patchers, memory_required)

    with patched(management, "load_models_gpu", load_and_tell), torch.inference_mode():
        latent, _ = node("Sampler", **inputs)
        assert not vae.decode(latent["samples"]).isnan().any()
    return latent["samples"]


def rooms(family: str, model, **numbers) -> list[float]:
    """The memory that is required as the images are drawn, at every loading of the model."""
    seen = []

    def loaded(patchers, room) -> None:
        if any(patcher.model is model.model for patcher in patchers):
            seen.append(room)

    image(family, model, loaded, **numbers)
    return seen


def stream(patchers: list, room: float) -> None:
    """Load no weight, as a host with too little room on its card; patch each as it is used."""
    for patcher in patchers:
        patcher.unpatch_model(CPU)
        patcher.patch_model(CPU, lowvram_model_memory=1)
        patched = [m for m in patcher.model.modules() if getattr(m, "weight_function", None)]
        assert bool(patched) == bool(patcher.patches)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is a file's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return line.rstrip().endswith(".safetensors")
    return False


class Elsewhere(torch.Tensor):
    """A tensor that claims to be on a GPU; only copies and moved tensors can be computed with.

    The host's layers move their weights when they compute. Other code that reads a weight has to do
    the same, or it fails where the weight is in main memory and not on the GPU.
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


def send_elsewhere(patchers: list, room: float) -> None:
    """Make every parameter an ``Elsewhere``."""
    for part in (part for patcher in patchers for part in patcher.model.modules()):
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = parameter.data.as_subclass(Elsewhere)
