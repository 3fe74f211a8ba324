"""The benchmark's counts of kernels, FLOPs and bytes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.meter import Counts, kernels_of_graphs
from diversevar_core.models.packed import Packed, multiplies


def test_products_and_their_bytes_are_counted_and_views_are_not():
    a, b = torch.ones(3, 5), torch.ones(7, 5)
    with Counts() as counts:
        (a @ b.T).relu()
    assert dict(counts.launches) == {"mm": 1, "relu": 1}
    assert counts.flops == 2 * 3 * 5 * 7
    assert counts.bytes == 4 * (15 + 35 + 21) + 4 * (21 + 21)
    assert counts.elementwise == 4 * (21 + 21)


def test_attention_and_packed_layers_are_counted():
    q, k = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 5, 8)
    with Counts() as counts:
        F.scaled_dot_product_attention(q, k, k)
    assert counts.flops == 2 * (2 * 2 * 3 * 5 * 8)
    if not multiplies(torch.float32):
        pytest.skip("this CPU's layers are not packed")
    layer = Packed(nn.Linear(8, 4))
    with Counts() as counts:
        layer(torch.ones(2, 3, 8))
    assert counts.flops == 2 * 6 * 8 * 4


def test_a_graphs_kernels_are_counted():
    def work(a: torch.Tensor) -> torch.Tensor:
        return ((a + 1) @ a.T).relu() * 2

    compiled, a = torch.compile(work), torch.ones(3, 5)
    assert kernels_of_graphs(lambda: compiled(a)) == [3]  # one before the product, one after it
