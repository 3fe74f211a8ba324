"""The convolutional autoencoder's shortcuts, beside what they stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diversevar_core.vae.autoencoder import ResnetBlock, Upsample, arranged, norm, normed


def test_doubling_is_nearest_neighbour_then_a_convolution():
    torch.manual_seed(0)
    layer = Upsample(6, nn, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    want = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(layer(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("threads", "mean"), [(1, 4.0), (2, 0.0)])
@torch.no_grad()
def test_norms_are_exact_at_1024_pixels(threads, mean):
    """Numbers of up to 10 and their sums' rounding: a few times 10 * 2**-24, and more by mean**2.

    torch's own, with channels last, is off by 1e-3.
    """
    layer = norm(32, nn, dtype=torch.float32)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 32, 1024, 1024, generator=torch.manual_seed(0)) + mean
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    got = normed(layer, arranged(x))
    torch.set_num_threads(before)
    want = layer.double()(x.double())
    torch.testing.assert_close(got.double(), want, atol=3e-5, rtol=0)


@torch.no_grad()
def test_a_block_is_as_exact_as_its_norms():
    torch.manual_seed(0)
    block = ResnetBlock(32, 64, nn, dtype=torch.float32)
    x = torch.randn(2, 32, 128, 160) + 20  # far from 0, where torch's own norm is off by 1e-3
    got = block(arranged(x)).double()
    torch.testing.assert_close(got, block.double()(x.double()), atol=1e-4, rtol=0)
