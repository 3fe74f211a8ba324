"""Images <-> token maps <-> features."""

from .bsq import BSQ
from .vae import Tokenizer
from .vqvae import VQVAE

TOKENIZERS: tuple[type[Tokenizer], ...] = (VQVAE, BSQ)
