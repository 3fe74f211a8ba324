"""An original implementation from the user's checkout, given our weights.

FoundationVision/VAR, FoundationVision/Infinity and HiDream-ai/VAREdit are run as their own scripts
run them. Packages that they import and that are missing are replaced by stubs: empty ones for what
sampling does not call, and torch's attention for flash_attn. In float32 on a CPU, Infinity's and
VAREdit's casts to bfloat16 around the cross-attention are removed, so that results can be compared.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diversevar_core.settings import guidance

from .shapes import Bench, Labels, Sampled, Text, condition_of

# package -> its modules that are imported by their full names
STAND_INS = {
    "flash_attn": ("flash_attn.ops",),
    "timm": ("timm.models", "timm.models.layers", "timm.loss"),
    "torchvision": ("torchvision.transforms",),
} | dict.fromkeys(("imageio", "pytz", "tqdm", "huggingface_hub"), ())


class StandIn(types.ModuleType):
    """A module of empty names: classes that can be inherited, called and used to decorate."""

    __path__ = ()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(
            name, (nn.Identity,), {"__new__": lambda cls, *args, **kwargs: pass_on(cls, args)}
        )


def pass_on(kind: type, args: tuple) -> object:
    """The result of calling a stub: a decorated function itself, else an object."""
    decorates = len(args) == 1 and isinstance(args[0], types.FunctionType)
    return args[0] if decorates else nn.Module.__new__(kind)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None):
    """(B, L, H, c) attention, for the stub of flash_attn."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_kvpacked_func(
    q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale
):
    """Attention of packed (sum of lengths, H, c) queries to packed (..., 2, H, c) keys, values."""
    mixed = []
    ends = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for (q0, q1), (k0, k1) in ends:
        k, v = kv[None, k0:k1].unbind(2)
        mixed.append(flash_attn_func(q[None, q0:q1], k, v, softmax_scale=softmax_scale)[0])
    return torch.cat(mixed)


def import_from(checkout: Path, *names: str) -> list[types.ModuleType]:
    """Import modules of a checkout, with stubs for packages that are not installed."""
    for package, below in STAND_INS.items():
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            sys.modules |= {name: StandIn(name) for name in (package, *below)}
    if isinstance(attention := sys.modules.get("flash_attn"), StandIn):
        attention.flash_attn_func = flash_attn_func
        attention.flash_attn_varlen_kvpacked_func = flash_attn_varlen_kvpacked_func
        for missing in ("layer_norm", "rms_norm", "fused_dense"):
            sys.modules[f"flash_attn.ops.{missing}"] = None  # ImportError, which Infinity catches
    sys.path.insert(0, str(checkout))
    return [importlib.import_module(name) for name in names]


class Original(NamedTuple):
    """An original with our weights; half precision is by autocast, as in its own scripts."""

    sample: Callable[[], Sampled]
    decode: Callable[[Tensor], Tensor]  # f_hat -> image in -1..1


def shape_of(checkout: Path, small: bool) -> str:
    """The model to compare with a checkout; small: for a CPU."""
    if (checkout / "infer.py").exists():  # only VAREdit has it
        return "varedit-125m" if small else "varedit-8b"
    if (checkout / "infinity").exists():
        return "infinity-125m" if small else "infinity-2b"
    return "var-d16" if small else "var-d30"


def original(checkout: Path, bench: Bench, batch: int = 1) -> Original:
    """The original of the bench's model, to sample from one stream with seed 0."""
    condition, dtype = condition_of(bench, batch), bench.model.dtype
    build = var if isinstance(condition, Labels) else infinity
    half = torch.autocast(condition.device.type, dtype, enabled=dtype != torch.float32)
    with contextlib.redirect_stdout(io.StringIO()):  # the constructors print their arguments
        parts = build(checkout, bench, condition)
    return Original(*map(half, parts))


def give(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Copy our weights into theirs."""
    places = type(ours).rename(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        places[name].copy_(tensor.view_as(places[name]))
    return theirs.requires_grad_(False).eval()


def var(checkout: Path, bench: Bench, condition: Labels) -> tuple[Callable, Callable]:
    """FoundationVision/VAR."""
    (models,), device = import_from(checkout, "models"), condition.device
    config, settings = bench.model.config, bench.settings
    vae, transformer = models.build_vae_var(
        device=device, patch_nums=config.sides, V=config.codebook, Cvae=config.features,
        ch=bench.vae.config.autoencoder.channels[0], num_classes=config.classes,
        depth=config.depth, shared_aln=config.shared_ada,
    )  # fmt: skip
    give(bench.vae, vae), give(bench.model, transformer)
    transformer.rng = torch.Generator(device)
    drawn, handed = [], []
    vae.quantize.embedding.register_forward_hook(lambda layer, args, _: drawn.append(args[0]))
    decode, blank = vae.fhat_to_img, torch.zeros(1)
    vae.fhat_to_img = lambda f_hat: handed.append(f_hat) or blank

    def sample() -> Sampled:
        drawn.clear(), handed.clear()
        transformer.autoregressive_infer_cfg(
            len(condition), condition.labels, 0, settings.cfg[0], settings.top_k, settings.top_p
        )
        return list(drawn), handed[0]

    return sample, decode


def infinity(checkout: Path, bench: Bench, condition: Text) -> tuple[Callable, Callable]:
    """FoundationVision/Infinity, or HiDream-ai/VAREdit, whose modules have the same names."""
    model, settings = bench.model, bench.settings
    at = "infinity.models"
    modules = import_from(checkout, f"{at}.infinity", f"{at}.basic", f"{at}.bsq_vae.vae")
    infinity_module, basic, vae_module = modules
    if model.dtype == torch.float32:
        basic.torch = types.SimpleNamespace(**{**vars(torch), "bfloat16": torch.float32})
    config, autoencoder = model.config, bench.vae.config
    patchify = int(config.bits != autoencoder.latent)
    multiples = [width // 128 for width in autoencoder.channels]
    vae = vae_module.vae_model(
        {}, "dynamic", autoencoder.latent, 2**autoencoder.latent, patch_size=bench.vae.stride,
        encoder_ch_mult=multiples, decoder_ch_mult=multiples,
    )  # fmt: skip
    transformer = infinity_module.Infinity(
        vae_local=vae, text_channels=config.text, text_maxlen=config.unconditional,
        shared_aln=True, checkpointing="full-block", customized_flash_attn=False,
        fused_norm=True, pad_to_multiplier=128, add_lvl_embeding_only_first_block=1,
        use_bit_label=1, rope2d_each_sa_layer=1, rope2d_normalized_by_hw=2, pn=config.pixels,
        apply_spatial_patchify=patchify, inference_mode=True, train_h_div_w_list=[1.0],
        depth=config.depth, embed_dim=config.width, num_heads=config.heads, mlp_ratio=4,
        block_chunks=4,
    )  # fmt: skip
    give(bench.vae, vae), give(model, transformer)
    vae.to(condition.device), transformer.to(condition.device)
    for block in transformer.unregistered_blocks:
        block.to(model.dtype)
    transformer.rng = torch.Generator(condition.device)
    lengths = [len(row) for row in condition.positive]
    ends = torch.tensor([0, *lengths], device=condition.device).cumsum(0).int()
    text = torch.cat(list(condition.positive)), lengths, ends, max(lengths)
    plan = guidance(settings, bench.schedule)
    source = {}
    if model.edits:  # (2 B, n, bits), for the conditional and the unconditional rows
        source["src_img_prefix"] = condition.source.flatten(2).mT.repeat(2, 1, 1)
    drawn, handed = [], []
    codes = vae.quantizer.lfq.indices_to_codes
    vae.quantizer.lfq.indices_to_codes = lambda bits, **kw: drawn.append(bits) or codes(bits, **kw)
    decode, blank = vae.decode, torch.zeros(1, 3, 1, 1)
    vae.decode = lambda f_hat: handed.append(f_hat) or blank

    def sample() -> Sampled:
        drawn.clear(), handed.clear()
        transformer.autoregressive_infer_cfg(
            vae=vae, scale_schedule=[(1, scale.h, scale.w) for scale in bench.schedule],
            label_B_or_BLT=text, B=len(condition), g_seed=0,
            cfg_list=[at.g for at in plan], tau_list=[at.tau for at in plan],
            top_k=settings.top_k, top_p=settings.top_p,
            cfg_insertion_layer=[settings.cfg_layer], vae_type=1, returns_vemb=1,
            ret_img=True, inference_mode=True, **source,
        )  # fmt: skip
        return [patches(bits, patchify) for bits in drawn], handed[0]

    return sample, decode


def patches(bits: Tensor, patchify: int) -> Tensor:
    """Their bits (B, 1, h, w, d) -> tokens (B, n, d), patches of 2 x 2 joined."""
    maps = bits.squeeze(1).movedim(-1, 1)
    if patchify:
        maps = F.pixel_unshuffle(maps, 2)
    return maps.flatten(2).movedim(1, 2)
