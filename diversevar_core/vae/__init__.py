"""Images <-> token maps <-> features."""

from .bsq import BSQ
from .vae import VAE
from .vqvae import VQVAE

VAES: tuple[type[VAE], ...] = (VQVAE, BSQ)
