"""The measurements of one call."""

import pytest
import torch

from benchmarks.meter import events, fits, flops, launches


def test_operations_are_counted():
    a, b = torch.ones(3, 5), torch.ones(7, 5)
    assert flops(lambda: (a @ b.T).relu()) == 2 * 3 * 5 * 7
    seen = events(lambda: (a @ b.T).relu().relu())
    assert seen["aten::mm"] == 1 and seen["aten::relu"] == 2


def test_numbers_that_are_read_are_waits():
    a = torch.ones(3, 5)
    assert launches(lambda: a.sum() + 1) == (0, 0)
    assert launches(lambda: [float(a.sum()), int(a.max())]) == (0, 2)


def test_only_full_memory_is_no_error():
    assert fits(lambda: 5, "cpu") == 5
    assert fits(lambda: torch.ones(2**60), "cpu") is None
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fits(lambda: torch.ones(3, 5) @ torch.ones(3, 5), "cpu")
