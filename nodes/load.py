"""Loaders of the transformer, its VAE, and the text encoder."""

from comfy_api.latest import io

from ..diversevar_core.models.infinity import TASKS
from . import folders, host
from .inputs import VARModel


class LoadModel(io.ComfyNode):
    """VAR, arXiv 2404.02905; Infinity, arXiv 2412.04431; VAREdit, arXiv 2508.15772."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARLoadModel",
            display_name="Load VAR Model",
            category="DiverseVAR/loaders",
            description="Loads a visual autoregressive model: Infinity (text to image), VAREdit "
            "(editing by instruction) or VAR (class to image).",
            search_aliases=["var", "infinity", "diversevar", "autoregressive", "load checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folders.choices(folders.MODELS),
                    tooltip="The transformer, from models/diffusion_models or checkpoints; emoji, "
                    "a small text-to-image model, and emoji-edit, which edits, come with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(host.WEIGHT_TYPES),
                    default="default",
                    tooltip="How the weights are kept. default: as ComfyUI decides, in half "
                    "precision on most GPUs. fp8: half of that memory, for a little quality. "
                    "fast: also computes in fp8, on GPUs that can.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "task",
                    options=["auto", *TASKS],
                    default="auto",
                    tooltip="Whether an Infinity model generates images or edits them (VAREdit); "
                    "its weights look the same. auto: as the file or its name says.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "torch_compile",
                    default=False,
                    tooltip="For GPUs: compile the model with torch.compile, into about half as "
                    "many kernels. The first image, and the first after batch_size changes, wait "
                    "for it. Needs Triton.",
                    advanced=True,
                ),
            ],
            outputs=[
                VARModel.Output(
                    display_name="model",
                    tooltip="For the DiverseVAR Sampler or VAR Edit Image.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name=None):
        return folders.check(folders.model_path, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name=None, **others):
        return folders.version(folders.model_path, model_name)

    @classmethod
    def execute(
        cls, model_name, weight_dtype="default", task="auto", torch_compile=False
    ) -> io.NodeOutput:
        path, task = folders.model_path(model_name), None if task == "auto" else task
        return io.NodeOutput(host.load_transformer(path, weight_dtype, task, torch_compile))


class LoadVAE(io.ComfyNode):
    """The VQ-VAE of VAR, the BSQ autoencoder of Infinity."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARLoadVAE",
            display_name="Load VAR VAE",
            category="DiverseVAR/loaders",
            description="Loads the VAE that turns a VAR model's tokens into images. It "
            "works with the stock VAE Decode and VAE Encode.",
            search_aliases=["var", "infinity", "vq", "vqvae", "bsq", "load vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=folders.choices(folders.VAES),
                    tooltip="The VAE that the model was trained with, from models/vae; "
                    "emoji for the model emoji.",
                ),
            ],
            outputs=[
                io.Vae.Output(tooltip="For the DiverseVAR Sampler, and for decoding its latents.")
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name=None):
        return folders.check(folders.vae_path, vae_name)

    @classmethod
    def fingerprint_inputs(cls, vae_name=None):
        return folders.version(folders.vae_path, vae_name)

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(host.load_vae(folders.vae_path(vae_name)))


class LoadCLIP(io.ComfyNode):
    """flan-T5-xl for Infinity's releases."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DiverseVARLoadCLIP",
            display_name="Load VAR CLIP (T5)",
            category="DiverseVAR/loaders",
            description="Loads the T5 text encoder that Infinity reads prompts with (flan-t5-xl).",
            search_aliases=["var", "infinity", "t5 loader", "flan t5", "load clip"],
            inputs=[
                io.Combo.Input(
                    "clip_name",
                    options=folders.choices(folders.TEXT_ENCODERS),
                    tooltip="flan-t5-xl's folder, or one safetensors file, from "
                    "models/text_encoders; emoji for the model emoji.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="For VAR Encode Prompts, or CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, clip_name=None):
        return folders.check(folders.text_encoder_path, clip_name)

    @classmethod
    def fingerprint_inputs(cls, clip_name=None):
        return folders.version(folders.text_encoder_path, clip_name)

    @classmethod
    def execute(cls, clip_name) -> io.NodeOutput:
        return io.NodeOutput(host.load_clip(folders.text_encoder_path(clip_name)))


NODES = [LoadModel, LoadVAE, LoadCLIP]
