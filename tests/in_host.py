"""Run by the host's Python: ``in_host.py HOST PACK MODELS OUT`` loads and samples in every way.

No server: the nodes' own classes run in a process that has imported the host. OUT becomes a
dictionary, saved by torch: name -> tensors, or the text of an error. ``Elsewhere`` simulates
weights on another device than the one that computes.
"""

import asyncio
import sys
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

host, pack, models, out = map(Path, sys.argv[1:])
sys.path[0] = str(host)

from comfy.cli_args import LatentPreviewMethod, args  # noqa: E402

args.cpu, args.base_directory, args.fp32_text_enc = True, str(models.parent), True

import comfy.ldm.modules.attention as kernels  # noqa: E402
import comfy.memory_management  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.patcher_extension import CallbacksMP  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch._inductor import config as inductor  # noqa: E402

import nodes  # noqa: E402

FLAGS = ("fp32_unet", "bf16_unet", "fp16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet")
TYPES = ("fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
KERNELS = ("basic", "sub_quad", "split", "pytorch")
FAMILIES = ("emoji", "infinity", "var")
# weights in float32 -> the same values as a file stores them
STORED = {"of float8": "in float8", "dequantized": "quantized"}
CPU = torch.device("cpu")


@contextmanager
def patched(module, name: str, value):
    """A module, or other object, with another value under a name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def dynamic():
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
    return kind.execute(**inputs).args


def load(name: str, **options):
    """A transformer from its file in ``models``."""
    inputs = {"weight_dtype": "default", "task": "auto", "torch_compile": False} | options
    return node("LoadModel", model_name=name, **inputs)[0]


def file(family: str) -> str:
    """The choice of a family's transformer, or vae."""
    return family if family == "emoji" else f"{family}.safetensors"


def text(encoder: str) -> list:
    """The conditioning of a prompt."""
    (clip,) = node("LoadCLIP", clip_name=encoder)
    return clip.encode_from_tokens_scheduled(clip.tokenize("a red apple"))


@cache
def others(family: str, lazily: bool) -> tuple:
    """The family's vae and a condition; lazily: loaded under Dynamic VRAM."""
    assert lazily == comfy.memory_management.aimdo_enabled
    condition = (
        node("ImageNetClass", class_name="3 tiger shark")[0] if family == "var" else text(family)
    )
    return node("LoadVAE", vae_name=file(family))[0], condition


def image(family: str, model, loaded=lambda patchers, room: None, **numbers) -> torch.Tensor:
    """The latent of one image: the sum of its tokens' codes, the same only for the same tokens.

    The family's vae and text encoder have its name. loaded: called whenever the host has
    loaded models, with their patchers and the memory required. numbers: inputs of the sampler.
    """
    vae, positive = others(family, comfy.memory_management.aimdo_enabled)
    size = {"aspect_ratio": numbers.pop("aspect", "1:1 square"), "megapixels": "official"}
    batch = numbers.pop("batch", 1)
    (latent,) = node("EmptyLatent", model=model, vae=vae, batch_size=batch, **size)
    inputs = {"model": model, "vae": vae, "positive": positive, "latent_image": latent, "seed": 7}
    inputs |= {"preset": {"preset": "as published"}, "sampling": {"sampling": "official (cfg 4)"}}
    inputs |= {"guidance_end": 0, "keep_side": 0, "exact_batch": False} | numbers
    load_models = comfy.model_management.load_models_gpu

    def load_and_tell(patchers, memory_required=0, **options) -> None:
        load_models(patchers, memory_required, **options)
        loaded(patchers, memory_required)

    with patched(comfy.model_management, "load_models_gpu", load_and_tell):
        latent, _ = node("Sampler", **inputs)
        assert not vae.decode(latent["samples"]).isnan().any()
    return latent["samples"]


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


def send_elsewhere(module: torch.nn.Module) -> None:
    """Make every parameter an ``Elsewhere``."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = parameter.data.as_subclass(Elsewhere)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


class Report(dict):
    """Results by name."""

    @contextmanager
    def errors(self, name: str):
        """Keep the text of an error under a name."""
        try:
            yield
        except (Exception, comfy.model_management.InterruptProcessingException) as error:
            self[name] = f"{type(error).__name__}: {error}"


def matrix(report: Report) -> None:
    """Every way to keep weights, for every family, with and without Dynamic VRAM."""
    for family in FAMILIES:
        for kind in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"):
            name = f"{family} rounded to {kind}"
            with report.errors(name):
                report[name] = image(family, load(f"{family}_{kind}.safetensors"))
        for mode in ("plain", "dynamic"):
            ways = [
                ("default", None),
                *((flag, flag) for flag in FLAGS),
                *((t, None) for t in TYPES),
            ]
            for way, flag in ways:
                name, kind = f"{family} {mode} {way}", "default" if flag else way
                with report.errors(name), ExitStack() as ways:
                    if mode == "dynamic":
                        ways.enter_context(dynamic())
                    if flag:
                        ways.enter_context(patched(args, flag, True))
                    report[name] = image(family, load(file(family), weight_dtype=kind))


def quantized(report: Report) -> None:
    """Files with quantized weights and their scales, and files of float8 alone."""
    for family, (plain, stored) in product(FAMILIES, STORED.items()):
        name = f"{family} {plain}"
        with report.errors(name):
            report[name] = image(family, load(f"{name}.safetensors"))
        for mode in ("plain", "dynamic"):
            name = f"{family} {stored}"
            with report.errors(f"{name} {mode}"), dynamic() if mode == "dynamic" else ExitStack():
                report[f"{name} {mode}"] = image(family, load(f"{name}.safetensors"))
    for encoder in ("t5 dequantized", "t5 quantized", "t5 scaled", "t5 headed", "t5 unmarked"):
        with report.errors(encoder):
            report[encoder] = text(encoder)[0][0]
    with report.errors("t5 dynamic"), dynamic():
        report["t5 dynamic"] = text("infinity")[0][0]
    report["t5 plain"] = text("infinity")[0][0]


def loras(report: Report) -> None:
    """LoRAs on the transformer: in two layouts, together, as weights stream, and taken off."""
    model = load("infinity.safetensors")
    before = weights(model)
    official, kohya = (
        node("LoadLora", model=model, lora_name=f"{name}.safetensors", strength_model=0.5)[0]
        for name in ("official", "kohya")
    )
    (both,) = node("LoadLora", model=official, lora_name="kohya.safetensors", strength_model=0.25)
    report["lora official"] = image("infinity", official)
    report["lora kohya"] = image("infinity", kohya)
    report["lora both"] = image("infinity", both)
    report["lora streamed"] = image("infinity", official, stream)
    for name in ("merged half", "merged three quarters"):
        report[name] = image("infinity", load(f"{name}.safetensors"))
    report["lora off"] = image("infinity", model)
    comfy.model_management.unload_all_models()
    after = weights(model)
    report["lora restores"] = all(torch.equal(before[name], after[name]) for name in before)
    for file in sorted((models / "loras").rglob("*.safetensors")):
        listed = str(file.relative_to(models / "loras"))
        if (name := f"lora {listed.removesuffix('.safetensors')}") not in report:
            with report.errors(name):
                (other,) = node("LoadLora", model=model, lora_name=listed, strength_model=0.5)
                report[name] = image("infinity", other)
    with report.errors("lora nan"):
        node("LoadLora", model=model, lora_name="kohya.safetensors", strength_model=float("nan"))
    for name in ("", ".", "../vae/var.safetensors"):
        with report.errors(f"lora at {name}"):
            node("LoadLora", model=model, lora_name=name, strength_model=1.0)
    with report.errors("lora of another model"):
        node(
            "LoadLora",
            model=load("var.safetensors"),
            lora_name="kohya.safetensors",
            strength_model=1.0,
        )


def measured(report: Report) -> None:
    """Measures and errors of odd batches of images."""
    shapes = {f"{c} channels": (2, 8, 8, c) for c in (1, 2, 3, 4)}
    shapes |= {"no images": (0, 8, 8, 3), "no pixels": (2, 0, 8, 3), "no batch": (8, 8, 3)}
    batches = {name: torch.rand(shape) for name, shape in shapes.items()}
    batches["nan"] = torch.full((2, 8, 8, 3), torch.nan)
    for name, images in batches.items():
        for kind, inputs in (("Measure", {}), ("Select", {"count": 1})):
            with report.errors(f"{kind} {name}"):
                report[f"{kind} {name}"] = node(kind, images=images, **inputs)


def stream(patchers: list, room: float) -> None:
    """Load no weight, as a host with too little room on its card; patch each as it is used."""
    for patcher in patchers:
        patcher.unpatch_model(CPU)
        patcher.patch_model(CPU, lowvram_model_memory=1)
        patched = [m for m in patcher.model.modules() if getattr(m, "weight_function", None)]
        assert bool(patched) == bool(patcher.patches)


class Vision:
    """CLIP vision; where it evicts, the host takes every other model off the card for it."""

    def __init__(self, evicts: bool):
        self.evicts = evicts

    def encode_image(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.evicts:
            comfy.model_management.unload_all_models()
        return {"image_embeds": images.mean(dim=(1, 2))}


def evicted(report: Report) -> None:
    """Starts compared by a model that takes the place of the others, which have a LoRA."""
    model = load("infinity.safetensors")
    (tuned,) = node("LoadLora", model=model, lora_name="official.safetensors", strength_model=0.5)
    vae, _ = others("infinity", False)
    for evicts in (False, True):
        compare = {"compare": "small images", "vae": vae, "clip_vision": Vision(evicts)}
        (starts,) = node("Seeds", candidates=20, side=4, compare=compare)
        report[f"evicts {evicts}"] = image("infinity", tuned, batch=2, method=starts)


def half_images(report: Report) -> None:
    """The host's --fp16-intermediates: images in half precision, edited within a mask."""
    model, (vae,) = load("emoji-edit"), node("LoadVAE", vae_name="emoji")
    inputs = {"model": model, "vae": vae, "positive": text("emoji-edit"), "seed": 1}
    inputs |= {"batch_size": 1, "sampling": {"sampling": "official (cfg 3)"}}
    inputs |= {"guidance_start": 0, "guidance_end": 0, "exact_batch": False}
    shades, mask = torch.linspace(0, 1, 64)[:, None].expand(1, 64, 64, 3), torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    for kind in (torch.float32, torch.float16):
        half = kind == torch.float16
        with patched(args, "fp16_intermediates", half):
            edited, *_ = node("Edit", **inputs, image=shades.to(kind), mask=mask.to(kind))
        report[f"edited in half {half}"] = edited.float()


def elsewhere(report: Report) -> None:
    """Weights that stay on another device."""

    def move(patchers: list, room: float) -> None:
        for patcher in patchers:
            send_elsewhere(patcher.model)

    for family in FAMILIES:
        name = f"{family} elsewhere"
        with report.errors(name):
            report[name] = image(family, load(file(family)), move)


def files(report: Report) -> None:
    """Wrong files, for layers that are made as they are filled, and a file that stays mapped."""
    for name in ("transposed", "lacking", "unknown", "quantized and lacking"):
        with report.errors(name), dynamic():
            load(f"{name}.safetensors")
    for mode in ("plain", "dynamic"):
        with dynamic() if mode == "dynamic" else ExitStack():
            model = load("emoji").model
        report[f"mapped {mode}"] = all(is_mapped(weight) for weight in model.parameters())
        report[f"types {mode}"] = {weight.dtype for weight in model.parameters()}
    with dynamic():
        report["made empty"] = comfy.ops.manual_cast.Linear(2, 2).weight is None


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is a file's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return line.rstrip().endswith(".safetensors")
    return False


def runs(report: Report) -> None:
    """What goes on around sampling: callbacks, cancel, previews, room on the card, copies."""
    model = load("infinity.safetensors")
    seen = []
    for kind in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        model.add_callback(kind, lambda patcher, kind=kind: seen.append(kind))
    image("infinity", model)
    with report.errors("cancelled"):
        cancel = comfy.model_management.interrupt_current_processing
        image("infinity", model, lambda patchers, room: cancel())
    report["callbacks"] = seen.copy()

    args.preview_method, args.preview_size = LatentPreviewMethod.Auto, 300
    frames = []
    comfy.utils.set_progress_bar_global_hook(lambda at, of, frame, **_: frames.append(frame))
    image("infinity", model, aspect="1:2 portrait")
    comfy.utils.set_progress_bar_global_hook(None)
    args.preview_method = LatentPreviewMethod.NoPreviews
    report["previews"] = [(kind, image.size, side) for kind, image, side in frames]

    rooms = []
    (few,) = node("ScaleKV", budget=0.1)
    for cfg, methods in ((1.0, None), (4.0, None), (4.0, few)):
        sampling = {"sampling": "custom", "cfg": cfg, "temperature": 0.5, "top_p": 0.97, "top_k": 0}
        numbers = {"sampling": sampling, "method": methods}
        image("infinity", model, lambda patchers, room: rooms.append(room), **numbers)
    report["room"] = rooms[::2]  # as the images are drawn, and not decoded
    report["room of starts"] = []
    for batch, candidates, side in (
        (2, 1, 128),
        (16, 1, 128),
        (2, 64, 1),
        (2, 64, 128),
        (1, 64, 9),
    ):
        compare = {"compare": "token maps"}
        (starts,) = node("Seeds", candidates=candidates, side=side, compare=compare)
        first = len(rooms)
        numbers = {"batch": batch, "method": starts}
        image("infinity", model, lambda patchers, room: rooms.append(room), **numbers)
        report["room of starts"].append(rooms[first])

    report["room of pruning"] = []
    for prune in (0.0, 0.5):
        first, (fast,) = len(rooms), node("FastVAR", prune=prune, skip=2)
        image("infinity", model, lambda patchers, room: rooms.append(room), method=fast)
        report["room of pruning"].append(rooms[first])
    (travel,), (vae, _) = node("Travel", side=4, method=few), others("infinity", False)
    first, numbers = len(rooms), {"method": travel}
    latent = image("infinity", model, lambda patchers, room: rooms.append(room), **numbers)
    report["room of travel"] = rooms[first]
    report["room of decoding"] = vae.memory_used_decode(latent.shape, vae.vae_dtype)

    rows = []
    hook = model.model.blocks[0].register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    for exact in (False, True):
        report[f"batch {exact}"] = image("infinity", model, batch=3, exact_batch=exact)
        report[f"rows {exact}"], rows = set(rows), []
    hook.remove()

    copy = model.clone(force_deepcopy=True)
    report["copy is another"] = copy.model is not model.model
    report["copy"] = image("infinity", copy)
    (vae,), (clip,) = (
        node("LoadVAE", vae_name="emoji"),
        node("LoadCLIP", clip_name="emoji"),
    )
    for patcher in (vae.patcher, clip.patcher):
        assert patcher.clone(force_deepcopy=True).model is not patcher.model
    estimate = vae.memory_used_decode((1, 1, 8, 8), torch.float32)
    with patched(comfy.model_management, "is_amd", lambda: True):
        (amd,) = node("LoadVAE", vae_name="emoji")
    report["amd"] = amd.memory_used_decode((1, 1, 8, 8), torch.float32) / estimate


def tiled(report: Report) -> None:
    """A million pixels decoded on a card that has memory for a quarter of them."""
    (vae,) = node("LoadVAE", vae_name="infinity.safetensors")
    side = 1024 // vae.upscale_ratio
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(1, vae.latent_channels, side, side, generator=random).sign() / 4
    decode, most = vae.first_stage_model.decode, latent.numel()

    def decode_some(part: torch.Tensor) -> torch.Tensor:
        if part.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(part)

    with patched(vae.first_stage_model, "decode", decode_some):
        for most in (latent.numel(), latent.numel() // 4):
            with report.errors(f"decoded {most / latent.numel()}"):
                report[f"decoded {most / latent.numel()}"] = vae.decode(latent)


def as_on_a_card(report: Report) -> None:
    """The host's kernels, and what layers compute in on a card, here on a CPU."""
    ours = sys.modules[nodes.NODE_CLASS_MAPPINGS["DiverseVARLoadModel"].__module__].host
    random = torch.Generator().manual_seed(0)
    report["q k v"] = q, k, v = torch.randn(3, 2, 4, 9, 16, generator=random)
    for name in KERNELS:
        with patched(ours, "optimized_attention", getattr(kernels, f"attention_{name}")):
            report[f"kernel {name}"] = ours.attention(q, k, v, None, 1.5)
    for compute in (torch.float32, torch.bfloat16, torch.float16):
        for family in FAMILIES:
            name = f"{family} in {compute}"
            cast = patched(
                comfy.model_management, "unet_manual_cast", lambda *_, compute=compute: compute
            )
            with report.errors(name), cast:
                model = load(file(family))
                for part in model.model.modules():
                    if hasattr(part, "attention"):
                        part.attention = ours.attention
                report[name] = image(family, model)
    with patched(comfy.model_management, "supports_fp8_compute", lambda *_: True):
        for family in FAMILIES:
            for name, kind in ((file(family), TYPES[1]), (f"{family} quantized.safetensors", None)):
                way = f"{family} {kind or 'quantized'} computed in fp8"
                with report.errors(way):
                    report[way] = image(family, load(name, weight_dtype=kind or "default"))


def compiled(report: Report) -> None:
    """A compiled model with a card's kernel: as it is, and with a LoRA while its weights stream."""
    ours = sys.modules[nodes.NODE_CLASS_MAPPINGS["DiverseVARLoadModel"].__module__].host
    kernel = patched(ours, "optimized_attention", kernels.attention_pytorch)
    with report.errors("compiled"), dynamic(), kernel:
        model = load("infinity.safetensors", torch_compile=True)
        for part in model.model.modules():
            if hasattr(part, "attention"):
                part.attention = ours.attention
        report["compiled"] = image("infinity", model)
        (tuned,) = node(
            "LoadLora", model=model, lora_name="official.safetensors", strength_model=0.5
        )
        report["compiled lora"] = image("infinity", tuned, stream)
    report["graphs"] = counters["stats"]["unique_graphs"]
    report["graph breaks"] = dict(counters["graph_break"])
    with report.errors("no compiler"), patched(inductor.cpp, "cxx", ("/nowhere",)):
        torch.compiler.reset()
        load("infinity.safetensors", torch_compile=True)


def cancelled(report: Report) -> None:
    """How many maps are drawn after cancel where no layer looks for it, as in compiled ones."""
    ours = sys.modules[nodes.NODE_CLASS_MAPPINGS["DiverseVARLoadModel"].__module__].host
    model, (vae, _) = load(file("var")), others("var", False)
    schedule, drawn = model.model.schedule(), []

    def steps():
        for scale in schedule:
            comfy.model_management.interrupt_current_processing(True)
            drawn.append(scale)
            yield SimpleNamespace(scale=scale, f_hat=torch.zeros(1))

    try:
        ours.watch(model, steps(), schedule, vae)
    except comfy.model_management.InterruptProcessingException:
        report["drawn after cancel"] = len(drawn)


def main() -> None:
    asyncio.run(nodes.load_custom_node(str(pack)))
    report = Report()
    with torch.inference_mode():
        for part in (
            matrix,
            quantized,
            loras,
            measured,
            evicted,
            half_images,
            files,
            runs,
            tiled,
            as_on_a_card,
            compiled,
            cancelled,
            elsewhere,
        ):
            with report.errors(part.__name__):
                part(report)
    torch.save(dict(report), out)


main()
