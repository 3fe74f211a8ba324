"""Models under ComfyUI's memory management, with its progress bar and previews."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import tokenizers
import torch
from comfy import sd1_clip
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.t5 import T5
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..diversevar_core.checkpoints.files import (
    Checkpoint,
    CheckpointError,
    is_safetensors,
    load_pickle,
)
from ..diversevar_core.checkpoints.loading import build_model, is_quantized, read_model
from ..diversevar_core.checkpoints.loading import load_vae as load_core_vae
from ..diversevar_core.errors import UserError, quote
from ..diversevar_core.images import to_pil
from ..diversevar_core.job import PLAIN, Chain, room
from ..diversevar_core.models.attention import sdpa
from ..diversevar_core.models.compiled import compile_blocks
from ..diversevar_core.models.family import Family
from ..diversevar_core.resize import area
from ..diversevar_core.sampling.method import Step
from ..diversevar_core.sampling.pairing import check_pair, patch_of
from ..diversevar_core.schedule import Schedule
from ..diversevar_core.settings import Settings
from ..diversevar_core.text.encoder import check_characters, check_length, read_t5
from ..diversevar_core.text.reading import Known, read
from ..diversevar_core.vae.autoencoder import to_image
from ..diversevar_core.vae.vae import VAE

PREVIEW_SIDE = 16  # tokens; a preview is decoded from a map of at most this side
TILE_SIDE = 512  # pixels
# in order of preference: half precision, with float32's range first
COMPUTE_TYPES = [torch.bfloat16, torch.float16, torch.float32]
WEIGHT_TYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
FILE = "diversevar_file"  # a patcher's attachment: the path that it was loaded from
SAID = "diversevar_said"  # a conditioning's entry: what of its text a small model draws
SUMS = "diversevar_sums"  # a latent's entry: a map's side -> the sum so far, at last samples
FILE_NAMES = "diversevar_file_names"  # a patcher's attachment: weight -> its name in the file


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """ComfyUI's attention kernel with the core's signature.

    With a mask, which only prompts of different lengths need, torch's kernel is used, as not all
    of ComfyUI's kernels support masks.
    """
    if mask is not None:
        return sdpa(q, k, v, mask, scale)
    return optimized_attention(
        q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True, scale=scale
    )


def load_file(file: Path) -> Mapping:
    """A checkpoint file's content, read as ComfyUI reads it: with --disable-mmap into memory.

    Under Dynamic VRAM, each tensor of a safetensors file knows its place in the file, from which
    ComfyUI reads it straight to the device; a mapped one would come page by page.
    """
    if is_safetensors(file):
        return comfy.utils.load_torch_file(str(file))
    return load_pickle(file, mmap=not comfy.cli_args.args.disable_mmap)


def load_transformer(
    path: Path,
    weight_dtype: str = "default",
    task: str | None = None,
    compiled: bool = False,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """Load a VAR or Infinity transformer into a model patcher.

    weight_dtype: one of WEIGHT_TYPES, as on ComfyUI's Load Diffusion Model. task: generate or edit,
    in place of what the file says. compiled: use torch.compile, which needs all weights loaded.
    disable_dynamic: load all weights at once, without ComfyUI's Dynamic VRAM. The types of storage
    and computation come from ComfyUI, so its command-line flags apply. Raises CheckpointError, or
    UserError if torch cannot compile.
    """
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    file = read_model(path, task, load_file)
    tensors, quantization = quantized(file.tensors, file.facts)
    storage = WEIGHT_TYPES[weight_dtype] or comfy.model_management.unet_dtype(
        device,
        model_params=comfy.utils.calculate_parameters(tensors),
        supported_dtypes=COMPUTE_TYPES,
        weight_dtype=None if quantization else comfy.utils.weight_dtype(tensors),
    )
    compute = comfy.model_management.unet_manual_cast(
        None if quantization else storage, device, COMPUTE_TYPES
    )
    compute = compute or storage
    operations = comfy.ops.pick_operations(
        None,  # always layers that cast weights, as a file has mixed types
        compute,
        load_device=device,
        fp8_optimizations=weight_dtype.endswith("_fast"),
        model_config=SimpleNamespace(quant_config=quantization),
    )
    kernel = sdpa if comfy.model_management.is_device_cpu(device) else attention
    file = Checkpoint(tensors, file.facts)
    model = build_model(file, path, offload, compute, operations, kernel)
    model.manual_cast_dtype = compute  # by which ComfyUI estimates the memory for casting
    if compiled:
        compile_blocks(model, device)
    patcher = patcher_class(disable_dynamic or compiled)(model, device, offload)
    store(model.blocks, storage, patcher.is_dynamic())
    patcher.cached_patcher_init = (load_transformer, (path, weight_dtype, task, compiled))
    patcher.set_attachments(FILE, path)
    patcher.set_attachments(FILE_NAMES, model.rename({name: name for name in tensors}))
    return patcher


def quantized(tensors: dict[str, Tensor], facts: dict) -> tuple[dict[str, Tensor], dict | None]:
    """Convert quantized layers to ComfyUI's newest format; returns tensors and their config."""
    layers = "_quantization_metadata"
    if any(name.endswith(".scale_weight") for name in tensors):
        tensors = {"scaled_fp8": torch.zeros(2)} | tensors  # the marker, which some files lack
    header = {layers: json.dumps(facts[layers])} if layers in facts else {}
    tensors, _ = comfy.utils.convert_old_quants(dict(tensors), metadata=header)
    return tensors, comfy.utils.detect_layer_quantization(tensors, "")


def patcher_class(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """ComfyUI's default patcher, or the one without Dynamic VRAM."""
    if disable_dynamic:
        return comfy.model_patcher.ModelPatcher
    return comfy.model_patcher.CoreModelPatcher


def store(layers: nn.Module, dtype: torch.dtype, dynamic: bool) -> None:
    """Store the layers' matrices and convolution kernels in this type, if it is smaller.

    dynamic: with Dynamic VRAM, weights stay in the file and are converted when they are loaded.
    """
    for layer in layers.modules():
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim < 2 or isinstance(weight, QuantizedTensor):
            continue
        kept = min(dtype, weight.dtype, key=lambda kind: kind.itemsize)
        if dynamic:
            layer.weight_comfy_model_dtype = kept
        else:
            layer.weight = nn.Parameter(weight.to(kept), requires_grad=False)


class Autoencoder(nn.Module):
    """A VAE with the interface of ComfyUI's VAE code: images <-> features."""

    def __init__(self, core: VAE):
        super().__init__()
        self.core = core

    def encode(self, image: Tensor) -> Tensor:
        return self.core.features(image)

    def decode(self, f_hat: Tensor) -> Tensor:
        return self.core.decode(f_hat)


class VARVAE(comfy.sd.VAE):
    """A VAE as ComfyUI's class, so that the stock encode, decode and tiled nodes work with it."""

    def __init__(self, core: VAE, disable_dynamic: bool = False):
        logging.root.addFilter(without_warning)
        try:
            super().__init__(sd={})
        finally:
            logging.root.removeFilter(without_warning)
        self.core = core
        self.first_stage_model = Autoencoder(core).eval()
        self.latent_channels = core.token_kind.channels
        self.downscale_ratio = self.upscale_ratio = core.stride
        # ComfyUI's estimate is for its own autoencoder of stride 8, which is similar
        own, strides = self.memory_used_decode, (core.stride / 8) ** 2
        self.memory_used_decode = lambda shape, dtype: own(shape, dtype) * strides
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = core.dtype
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = patcher_class(disable_dynamic)(
            self.first_stage_model, self.device, comfy.model_management.vae_offload_device()
        )
        for part in (core.encoder, core.decoder):
            store(part, core.dtype, self.patcher.is_dynamic())
        self.model_size()

    def decode_tiled_(self, samples: Tensor, *sizes: int, **options: int) -> Tensor:
        """ComfyUI's, with tiles of ``TILE_SIDE`` for any stride: its default is for 8.

        ComfyUI calls it without sizes where the whole image does not fit the memory.
        """
        if not sizes and not options:
            side = TILE_SIDE // self.core.stride
            sizes = side, side, side // 4
        return super().decode_tiled_(samples, *sizes, **options)


def without_warning(record: logging.LogRecord) -> bool:
    """A log filter that drops ComfyUI's warning about a VAE without weights."""
    return "No VAE weights detected" not in record.getMessage()


def core_vae(vae: comfy.sd.VAE) -> VAE:
    """The core's VAE in ComfyUI's; UserError if it is a diffusion model's."""
    if not isinstance(vae, VARVAE):
        raise UserError("This VAE belongs to a diffusion model; connect Load VAR VAE instead.")
    return vae.core


def pair(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE) -> tuple[Family, VAE]:
    """The core's transformer and VAE in ComfyUI's; UserError if they do not fit each other."""
    network, own = model.model, core_vae(vae)
    check_pair(network, own)
    return network, own


def load_vae(path: Path, disable_dynamic: bool = False) -> VARVAE:
    """Load a VAE's file. Raises CheckpointError."""
    device = comfy.model_management.vae_device()
    dtype = torch.float32
    if not comfy.model_management.is_device_cpu(device):
        dtype = comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float32])
    offload = comfy.model_management.vae_offload_device()
    core = load_core_vae(path, offload, dtype, comfy.ops.manual_cast, load_file)
    vae = VARVAE(core, disable_dynamic)
    vae.patcher.cached_patcher_init = (reload, (load_vae, path))
    vae.patcher.set_attachments(FILE, path)
    return vae


def reload(load: Callable, path: Path, disable_dynamic: bool = False):
    """Load a file again, for ComfyUI's copies on other devices; returns its patcher."""
    return load(path, disable_dynamic).patcher


class GivenTokenizer:
    """Passed to ComfyUI as the tokenizer's class, with a tokenizer in place of its path."""

    @staticmethod
    def from_pretrained(tokenizer: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Tokens(dict):
    """Encoder name -> tokens; UserError for encoders of other models (as some nodes ask for).

    said: a sentence on what of the text is drawn, if that is not all.
    """

    said: str | None = None

    def __missing__(self, name: str):
        raise UserError(
            "This node is for a diffusion model with other text encoders (it asks for "
            f"{quote(name)}), and a VAR model has only T5; use CLIP Text Encode."
        )


class PromptTokenizer(sd1_clip.SD1Tokenizer):
    """The tokenizer of ComfyUI's CLIP object; UserError for text that the model cannot read.

    known: what a small model knows, onto which texts are read.
    """

    def __init__(self, known: Known | None, **options):
        super().__init__(**options)
        self.known = known

    def tokenize_with_weights(self, text: str, *arguments, **options) -> Tokens:
        check_characters("The prompt", text)
        said = None
        if self.known:
            text, said = read_weighted(text, self.known)
        tokens = Tokens(super().tokenize_with_weights(text, *arguments, **options))
        check_length(len(tokens["t5"][0]))
        tokens.said = said
        return tokens


def read_weighted(text: str, known: Known) -> tuple[str, str | None]:
    """``read`` a text with ComfyUI's weights, as in "(red:1.2) apple".

    They stay if all of the text is drawn.
    """
    parts = sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)
    prompt, said = read(sd1_clip.unescape_important("".join(part for part, _ in parts)), known)
    weighted = said is None and any(weight != 1 for _, weight in parts)
    return (text.strip() if weighted else prompt), said


class PromptEncoder(sd1_clip.SD1ClipModel):
    """The model of ComfyUI's CLIP object; conditionings get what ``Tokens`` say as ``SAID``."""

    def encode_token_weights(self, token_weight_pairs):
        features, pooled, *extras = super().encode_token_weights(token_weight_pairs)
        if said := getattr(token_weight_pairs, "said", None):
            extras = [{**(extras[0] if extras else {}), SAID: said}]
        return features, pooled, *extras


def load_clip(path: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load a T5 encoder as ComfyUI's CLIP, for the stock text nodes. Raises CheckpointError."""
    shipped = Path(sd1_clip.__file__).parent / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
    file = read_t5(path, shipped, load_file)
    config = asdict(file.config) | {"model_type": "t5"}
    config["dense_act_fn"] = "gelu_pytorch_tanh" if file.config.is_gated_act else "relu"
    unpadded = partial(
        sd1_clip.SDTokenizer,
        file.tokenizer(),
        tokenizer_class=GivenTokenizer,
        embedding_size=file.config.d_model,
        embedding_key="t5",
        has_start_token=False,
        pad_with_end=False,
        pad_to_max_length=False,
        max_length=2**31,  # one part, whose length PromptTokenizer checks
    )
    t5 = partial(
        sd1_clip.SDClipModel,
        textmodel_json_config=config,
        special_tokens={"end": 1, "pad": 0},
        model_class=T5,
    )
    tokenizer = partial(PromptTokenizer, file.known(), name="t5", tokenizer=unpadded)
    encoder = partial(PromptEncoder, name="t5", clip_model=t5)
    tensors, quantization = quantized(file.tensors, file.facts)
    layers = {name.rpartition(".")[0] for name in tensors if is_quantized([name])}
    if any(f"{layer}.comfy_quant" not in tensors for layer in layers):
        raise CheckpointError(
            f"{quote(path)} is quantized in a format that is not supported; choose the text "
            "encoder in float16, bfloat16, or scaled float8."
        )
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(tensors),
        state_dict=[tensors],
        model_options={"quantization_metadata": quantization} if quantization else {},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (reload, (load_clip, path))
    clip.patcher.set_attachments(FILE, path)
    return clip


def fit(images: Tensor, height: int, width: int, resize: str = "lanczos") -> Tensor:
    """Crop (B, C, H, W) around the centre to the aspect ratio of height x width, and resize."""
    if images.shape[-2:] == (height, width):
        return images
    return comfy.utils.common_upscale(images, width, height, resize, "center")


def to_device(
    model: comfy.model_patcher.ModelPatcher,
    vae: VARVAE,
    schedule: Schedule,
    settings: Settings,
    batch: int,
    chain: Chain = PLAIN,
    sources: int = 0,
) -> None:
    """Load both models to the device, with free memory for a batch.

    sources: number of source images, 1 if all images share one.
    """
    need = room(model.model, schedule, settings, batch, chain, sources)
    if chain.travel:  # it decodes an image
        sides = (patch_of(model.model, vae.core) * side for side in schedule[-1].full)
        shape = (1, vae.core.token_kind.channels, *sides)
        need = max(need, vae.memory_used_decode(shape, vae.vae_dtype))
    comfy.model_management.load_models_gpu([model, vae.patcher], memory_required=need)


def watch(
    model: comfy.model_patcher.ModelPatcher, steps: Iterator[Step], schedule: Schedule, vae: VARVAE
) -> dict[str, object]:
    """Run the sampler with ComfyUI's progress bar and previews; returns a latent.

    ``samples`` is f_hat (B, D, H, W), and ``SUMS`` f_hat after every map, of the last pass.

    Cancel raises an exception: ComfyUI's layers check for it; for compiled blocks, it is checked
    between the maps.
    """
    method = comfy.cli_args.args.preview_method
    previews = method != comfy.cli_args.LatentPreviewMethod.NoPreviews
    bar = comfy.utils.ProgressBar(sum(scale.tokens for scale in schedule))
    done, pixels = 0, comfy.cli_args.args.preview_size
    sums = {}
    model.pre_run()
    try:
        for step in steps:
            sums[step.scale.side] = step.f_hat
            comfy.model_management.throw_exception_if_processing_interrupted()
            done += step.scale.tokens
            image = ("JPEG", preview(step, vae), pixels) if previews else None
            bar.update_absolute(done, preview=image)
    finally:
        model.cleanup()
    device = comfy.model_management.intermediate_device()
    sums = {side: f_hat.to(device) for side, f_hat in sums.items()}
    return {"samples": sums[step.scale.side], SUMS: sums}


def preview(step: Step, vae: VARVAE):
    """Decode the first image so far at the size of the current map, or smaller."""
    f_hat = step.f_hat[:1]
    h, w = step.scale.h, step.scale.w
    shrink = min(PREVIEW_SIDE / max(h, w), 1)
    small = area(f_hat, *(max(round(side * shrink), 1) for side in (h, w)))
    return to_pil(to_image(vae.core.decode(small))[0])
