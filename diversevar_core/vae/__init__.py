"""Images <-> token maps <-> features."""

from .bsq import BSQ
from .tokenizer import Tokenizer
from .vqvae import VQVAE

TOKENIZERS: tuple[type[Tokenizer], ...] = (VQVAE, BSQ)
