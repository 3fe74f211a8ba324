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
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diversevar_core.conditions import Labels
from diversevar_core.models.family import Family
from diversevar_core.schedule import Schedule
from diversevar_core.settings import Settings, guidance
from diversevar_core.vae.vae import VAE

from .shapes import Sampled, Side

STAND_INS = ("flash_attn", "timm", "torchvision", "imageio", "pytz", "tqdm", "huggingface_hub")


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


def import_from(checkout: Path, names: list[str]) -> list[types.ModuleType]:
    """Import modules of a checkout, with stubs for packages that are not installed."""
    for package in STAND_INS:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            for name in (package, *BELOW.get(package, ())):
                sys.modules[name] = StandIn(name)
    if isinstance(sys.modules.get("flash_attn"), StandIn):
        attention = sys.modules["flash_attn"]
        attention.flash_attn_func = flash_attn_func
        attention.flash_attn_varlen_kvpacked_func = flash_attn_varlen_kvpacked_func
        for missing in ("layer_norm", "rms_norm", "fused_dense"):
            sys.modules[f"flash_attn.ops.{missing}"] = None  # ImportError, which Infinity catches
    sys.path.insert(0, str(checkout))
    return [importlib.import_module(name) for name in names]


# submodules that are imported by their full names
BELOW = {
    "timm": ("timm.models", "timm.models.layers", "timm.loss"),
    "torchvision": ("torchvision.transforms",),
    "flash_attn": ("flash_attn.ops",),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress output, as the constructors print their arguments."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def original(
    checkout: Path,
    model: Family,
    tokenizer: VAE,
    condition,
    schedule: Schedule,
    settings: Settings,
    seed: int,
) -> Side:
    """The original of the model's family with the model's weights, to sample from one stream."""
    build = var if model.reads is Labels else infinity
    return build(checkout, model, tokenizer, condition, schedule, settings, seed)


def give(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    """Copy our weights into theirs."""
    places = type(ours).rename(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        places[name].copy_(tensor.view_as(places[name]))
    return theirs.requires_grad_(False).eval()


def var(checkout, model, tokenizer, condition, schedule, settings, seed) -> Side:
    """FoundationVision/VAR."""
    models, device = import_from(checkout, ["models"])[0], condition.device
    config, autoencoder = model.config, tokenizer.config.autoencoder
    with quiet():
        vae, transformer = models.build_vae_var(
            device=device,
            patch_nums=config.sides,
            V=config.codebook,
            Cvae=config.features,
            ch=autoencoder.channels[0],
            num_classes=config.classes,
            depth=config.depth,
            shared_aln=config.shared_ada,
        )
    give(tokenizer, vae), give(model, transformer)
    drawn, handed = [], []
    vae.quantize.embedding.register_forward_hook(lambda layer, args, _: drawn.append(args[0]))
    decode, blank = vae.fhat_to_img, torch.zeros(1)
    vae.fhat_to_img = lambda f_hat: handed.append(f_hat) or blank

    def sample() -> Sampled:
        drawn.clear(), handed.clear()
        transformer.autoregressive_infer_cfg(
            len(condition), condition.labels, seed, settings.cfg[0], settings.top_k, settings.top_p
        )
        return list(drawn), handed[0]

    return Side("VAR's original", sample, torch.no_grad()(decode))


def infinity(checkout, model, tokenizer, condition, schedule, settings, seed) -> Side:
    """FoundationVision/Infinity, or HiDream-ai/VAREdit, whose modules have the same names."""
    edits = (checkout / "infer.py").exists()  # only VAREdit has it
    repository = "VAREdit" if edits else "Infinity"
    if model.edits != edits:
        task = "edits" if model.edits else "does not edit"
        raise ValueError(f"The checkout is of {repository}, but the model {task}.")
    names = ("infinity", "basic", "bsq_vae.vae")
    modules = import_from(checkout, [f"infinity.models.{name}" for name in names])
    infinity_module, basic, vae_module = modules
    if model.dtype == torch.float32:
        basic.torch = types.SimpleNamespace(**{**vars(torch), "bfloat16": torch.float32})
    config, autoencoder = model.config, tokenizer.config
    patchify = int(config.bits != autoencoder.latent)
    multiples = [width // 128 for width in autoencoder.channels]
    with quiet(), torch.no_grad():
        vae = vae_module.vae_model(
            {}, "dynamic", autoencoder.latent, 2**autoencoder.latent,
            patch_size=tokenizer.stride, encoder_ch_mult=multiples, decoder_ch_mult=multiples,
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
    give(tokenizer, vae), give(model, transformer)
    vae.to(condition.device), transformer.to(condition.device)
    if model.dtype == torch.bfloat16:
        for block in transformer.unregistered_blocks:
            block.bfloat16()
    transformer.rng = torch.Generator(condition.device)
    lengths = [len(row) for row in condition.positive]
    ends = torch.tensor([0, *lengths], device=condition.device).cumsum(0).int()
    text = torch.cat(list(condition.positive)), lengths, ends, max(lengths)
    plan = guidance(settings, schedule)
    source = {}
    if edits:  # (2 B, n, bits), for the conditional and the unconditional rows
        source["src_img_prefix"] = condition.source.flatten(2).mT.repeat(2, 1, 1)
    drawn, handed = [], []
    codes = vae.quantizer.lfq.indices_to_codes
    vae.quantizer.lfq.indices_to_codes = lambda bits, **kw: drawn.append(bits) or codes(bits, **kw)
    decode = vae.decode
    blank = torch.zeros(1, 3, 1, 1)
    vae.decode = lambda f_hat: handed.append(f_hat) or blank

    @torch.no_grad()
    def sample() -> Sampled:
        drawn.clear(), handed.clear()
        half = model.dtype == torch.bfloat16
        with torch.autocast(condition.device.type, torch.bfloat16, enabled=half):
            transformer.autoregressive_infer_cfg(
                vae=vae, scale_schedule=[(1, scale.h, scale.w) for scale in schedule],
                label_B_or_BLT=text, B=len(condition), g_seed=seed,
                cfg_list=[at.g for at in plan], tau_list=[at.tau for at in plan],
                top_k=settings.top_k, top_p=settings.top_p,
                cfg_insertion_layer=[settings.cfg_layer], vae_type=1, returns_vemb=1,
                ret_img=True, inference_mode=True, **source,
            )  # fmt: skip
        return [patches(bits, patchify) for bits in drawn], handed[0]

    return Side(f"{repository}'s original", sample, torch.no_grad()(decode))


def patches(bits: Tensor, patchify: int) -> Tensor:
    """Their bits (B, 1, h, w, d) -> tokens (B, n, d), patches of 2 x 2 joined."""
    maps = bits.squeeze(1).movedim(-1, 1)
    if patchify:
        maps = F.pixel_unshuffle(maps, 2)
    return maps.flatten(2).movedim(1, 2)
