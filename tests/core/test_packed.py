"""Linear layers packed for a CPU."""

import pytest
import torch
from torch import nn

from diversevar_core.models.blocks import FeedForward
from diversevar_core.models.packed import Packed, fastest_dtype, multiplies, pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 100])
def test_a_packed_layer_is_the_layer(dtype, tokens):
    if not multiplies(dtype):
        pytest.skip("this CPU does not multiply bfloat16")
    torch.manual_seed(0)
    plain = FeedForward(96, 384, nn, dtype=dtype).requires_grad_(False)
    x = torch.randn(2, tokens, 96, dtype=dtype)
    want = FeedForward(96, 384, nn, dtype=torch.float64)
    want.load_state_dict(plain.state_dict())
    pack(plain)
    assert isinstance(plain.fc1, Packed)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    norm = torch.ones(2, 1, 96), torch.zeros(2, 1, 96)
    got, exact = plain(x.float(), norm), want(x.double(), [part.double() for part in norm])
    torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


def test_the_fastest_type_is_one_that_the_cpu_multiplies():
    assert multiplies(fastest_dtype())
