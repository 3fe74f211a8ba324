"""The only file that knows ComfyUI's memory manager, progress and previews."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy import sd1_clip
from comfy.ldm.modules.attention import optimized_attention
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.t5 import T5
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ..diversevar_core.attention import sdpa
from ..diversevar_core.checkpoints import load_model, load_tokenizer
from ..diversevar_core.families.family import Family
from ..diversevar_core.methods import Method
from ..diversevar_core.pictures import to_pil
from ..diversevar_core.resize import area
from ..diversevar_core.sampler import Step
from ..diversevar_core.schedule import Scale, Schedule
from ..diversevar_core.text import check_length, read_t5
from ..diversevar_core.tokenizers.autoencoder import to_image
from ..diversevar_core.tokenizers.tokenizer import Tokenizer

PREVIEW_SIDE = 16  # tokens; a preview is decoded from a map of at most this side
PREVIEW_PIXELS = 512


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The host's attention kernel in the core's form; it scales by c ** -0.5 on its own.

    Masks, which only prompts of different lengths need, stay with torch: not every kernel of the
    host's reads them.
    """
    if mask is not None:
        return sdpa(q, k, v, mask, scale)
    q = q * (scale * q.shape[-1] ** 0.5)
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)


def load_transformer(path: Path, task: str | None = None) -> comfy.model_patcher.ModelPatcher:
    """A VAR or Infinity transformer under the host's memory management; task as in load_model."""
    device = comfy.model_management.get_torch_device()
    on_cpu = comfy.model_management.is_device_cpu(device)
    offload = comfy.model_management.unet_offload_device()
    dtype = torch.float32
    if not on_cpu:
        dtype = comfy.model_management.unet_dtype(
            device, supported_dtypes=[torch.bfloat16, torch.float32]
        )
    kernel = sdpa if on_cpu else attention
    model = load_model(path, offload, dtype, comfy.ops.manual_cast, kernel, task)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)


class Autoencoder(nn.Module):
    """A tokenizer as the host's VAE code calls it: pictures <-> features, no tokens between."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def encode(self, image: Tensor) -> Tensor:
        return self.tokenizer.features(image)

    def decode(self, f_hat: Tensor) -> Tensor:
        return self.tokenizer.decode(f_hat)


class TokenizerVAE(comfy.sd.VAE):
    """A tokenizer as a VAE, so that the stock encode, decode and tiled nodes work on it."""

    def __init__(self, tokenizer: Tokenizer, dtype: torch.dtype):
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the host warns of the weights that it is not given
        super().__init__(sd={})
        logging.disable(level)
        self.tokenizer = tokenizer
        self.first_stage_model = Autoencoder(tokenizer).eval()
        self.latent_channels = tokenizer.token_kind.channels
        self.downscale_ratio = self.upscale_ratio = tokenizer.stride
        # as much as the host reckons for its own autoencoder of stride 8, which this one resembles
        self.memory_used_decode = lambda shape, dtype: (
            2178 * shape[2] * shape[3] * tokenizer.stride**2 * dtype.itemsize
        )
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = dtype
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()


def tokenizer_of(vae: comfy.sd.VAE) -> Tokenizer:
    """The tokenizer in a VAE; ValueError where it is a diffusion model's."""
    if not isinstance(vae, TokenizerVAE):
        raise ValueError(
            "This VAE belongs to a diffusion model; connect Load VAR Tokenizer in its place."
        )
    return vae.tokenizer


def load_vae(path: Path) -> TokenizerVAE:
    """A tokenizer file as a VAE."""
    device = comfy.model_management.vae_device()
    dtype = torch.float32
    if not comfy.model_management.is_device_cpu(device):
        dtype = comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float32])
    offload = comfy.model_management.vae_offload_device()
    return TokenizerVAE(load_tokenizer(path, offload, dtype, comfy.ops.manual_cast), dtype)


class TokenizerFile:
    """Opens a tokenizer.json where the host expects a tokenizer class."""

    @staticmethod
    def from_pretrained(path: str) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_file=path)


class T5Tokenizer(sd1_clip.SDTokenizer):
    """T5's tokens with the host's prompt weights, never padded; too long a prompt is an error."""

    def __init__(self, path: str, width: int, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            path,
            tokenizer_class=TokenizerFile,
            embedding_directory=embedding_directory,
            embedding_size=width,
            embedding_key="t5",
            has_start_token=False,
            pad_with_end=False,
            pad_to_max_length=False,
            max_length=2**31,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options):
        tokens = super().tokenize_with_weights(text, return_word_ids, **options)
        check_length(len(tokens[0]))
        return tokens


class T5Model(sd1_clip.SDClipModel):
    """The host's T5 with sizes read off the checkpoint."""

    def __init__(self, config: dict, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            special_tokens={"end": 1, "pad": 0},
            model_class=T5,
            model_options=model_options or {},
        )


def load_clip(path: Path) -> comfy.sd.CLIP:
    """A T5 encoder as the host's CLIP, for the stock text nodes."""
    shipped = Path(sd1_clip.__file__).parent / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
    file = read_t5(path, shipped)
    config = {
        "vocab_size": file.config.vocab_size,
        "d_model": file.config.d_model,
        "d_kv": file.config.d_kv,
        "d_ff": file.config.d_ff,
        "num_layers": file.config.num_layers,
        "num_heads": file.config.num_heads,
        "dense_act_fn": "gelu_pytorch_tanh" if file.config.is_gated_act else "relu",
        "is_gated_act": file.config.is_gated_act,
        "model_type": "t5",
    }
    tokenizer = partial(
        sd1_clip.SD1Tokenizer,
        name="t5",
        tokenizer=partial(T5Tokenizer, str(file.vocabulary), file.config.d_model),
    )
    encoder = partial(sd1_clip.SD1ClipModel, name="t5", clip_model=partial(T5Model, config))
    return comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        state_dict=[file.tensors],
    )


class Interruptible(Method):
    """Lets the user's cancel button through before every block."""

    def block(self, run: Callable[[Tensor], Tensor], i: int, scale: Scale, x: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return run(x)


def to_device(
    model: comfy.model_patcher.ModelPatcher,
    vae: TokenizerVAE,
    schedule: Schedule,
    batch: int,
    sources: int = 0,
) -> torch.device:
    """Have both models ready, with room for this many pictures; returns their device.

    sources: how many pictures are edited; one that all edits share is kept once.
    """
    network: Family = model.model
    width, last, cached = network.width, schedule[-1].tokens, schedule[-1].begin
    rows, itemsize = 2 * batch, network.dtype.itemsize
    cache = 2 * (rows * cached + 2 * sources * last) * width * network.depth * itemsize
    work = 32 * rows * last * width  # float32 streams of the last map
    if sources:  # a block's keys and values, the source's in front
        work += 2 * rows * (cached + 2 * last) * width * itemsize
    comfy.model_management.load_models_gpu([model, vae.patcher], memory_required=cache + work)
    return model.load_device


def watch(steps: Iterator[Step], schedule: Schedule, vae: TokenizerVAE) -> Tensor:
    """Run the sampler with the host's progress bar and previews; returns f_hat (B, D, H, W)."""
    method = comfy.cli_args.args.preview_method
    previews = method != comfy.cli_args.LatentPreviewMethod.NoPreviews
    bar = comfy.utils.ProgressBar(sum(scale.tokens for scale in schedule))
    done = 0
    for step in steps:
        done += step.scale.tokens
        picture = ("JPEG", preview(step, vae), PREVIEW_PIXELS) if previews else None
        bar.update_absolute(done, preview=picture)
    return step.f_hat.to(comfy.model_management.intermediate_device())


def preview(step: Step, vae: TokenizerVAE):
    """The first picture so far, decoded small: no larger than the map that was just drawn."""
    f_hat = step.f_hat[:1]
    h, w = (min(size, PREVIEW_SIDE) for size in (step.scale.h, step.scale.w))
    return to_pil(to_image(vae.tokenizer.decode(area(f_hat, h, w)))[0])
