"""DiverseVAR for ComfyUI: VAR and Infinity models, and images that differ from seed to seed."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
