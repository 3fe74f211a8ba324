"""Visual autoregressive image models and diversity methods for them, in plain PyTorch."""

__version__ = "0.2.0"  # pyproject.toml's
