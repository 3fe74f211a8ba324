"""The convolutional decoder's shortcuts."""

import torch
from torch import nn
from torch.nn import functional as F

from diversevar_core.vae.autoencoder import Upsample


def test_doubling_is_nearest_neighbour_then_a_convolution():
    torch.manual_seed(0)
    layer = Upsample(6, nn, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    want = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(layer(x), want, atol=1e-12, rtol=0)
