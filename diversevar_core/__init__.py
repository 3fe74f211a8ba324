"""Visual autoregressive image models and diversity methods for them, in plain PyTorch."""
