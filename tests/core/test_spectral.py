"""SSR and SAR against a float64 singular value decomposition, and what must hold of any input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diversevar_core.conditions import Labels
from diversevar_core.errors import UserError
from diversevar_core.methods.ssr_sar import MAX_EXPONENT, DiverseVAR, reweight
from diversevar_core.sampling.method import Context
from diversevar_core.schedule import square

SIZES = [(1, 64), (4, 64), (16, 256), (36, 256), (16, 2048), (36, 2048), (144, 2048), (144, 64)]
RATES = [-0.25, -1.0, -2.0, -6.0, 0.25, 1.0, 3.0]


def by_svd(x, rate, alpha, relative):
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    unit = s[..., :1] if relative else 1
    gain = alpha * torch.exp((rate * s / unit).clamp(max=MAX_EXPONENT))
    return (u * (gain * s).unsqueeze(-2)) @ vh


def error(got, want):
    return ((got - want).norm() / want.norm()).item()


def matrices(kind, n, c):
    generator = torch.Generator().manual_seed(n * c)
    x = torch.randn(2, n, c, generator=generator)
    if kind == "one direction dominates":
        x = x + 50 * torch.randn(2, 1, c, generator=generator)
    if kind == "rank 3":
        x = torch.randn(2, n, 3, generator=generator) @ torch.randn(2, 3, c, generator=generator)
    return x


@pytest.mark.parametrize("kind", ["full rank", "one direction dominates", "rank 3"])
@pytest.mark.parametrize(("n", "c"), SIZES)
def test_is_the_svd_form(kind, n, c):
    x = matrices(kind, n, c)
    for rate in RATES:
        assert error(reweight(x, rate), by_svd(x, rate, 1.0, True)) < 1e-5
    for rate in (-0.05, -0.001, 0.001):
        assert error(reweight(x, rate, 1.2, False), by_svd(x, rate, 1.2, False)) < 1e-5


def test_zero_stays_zero():
    assert not reweight(torch.zeros(2, 16, 64), -1.0).any()
    assert not reweight(torch.zeros(2, 16, 64), 1.0, 2.0, relative=False).any()


def test_largest_value_gets_the_stated_gain():
    x = matrices("full rank", 16, 64)
    before, after = torch.linalg.matrix_norm(x, 2), torch.linalg.svdvals(reweight(x, 0.5))[:, 0]
    torch.testing.assert_close(after, before * math.exp(0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_the_storage(dtype):
    x = matrices("one direction dominates", 36, 256).to(dtype)
    got = reweight(x, -1.0)
    assert got.dtype == dtype
    assert torch.equal(got, by_svd(x, -1.0, 1.0, True).to(dtype))


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
rates = st.floats(-8, 8, allow_nan=False)


@given(shapes, rates, st.booleans(), st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e30]))
def test_gains_are_never_negative_or_non_finite(shape, rate, relative, seed, size):
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    y = reweight(x.double(), rate, 1.0, relative)
    assert y.isfinite().all()
    # x^T y = V diag(gain s^2) V^T has no negative eigenvalue
    values = torch.linalg.eigvalsh((x.double().mT @ y + y.mT @ x.double()) / 2)
    assert values.min() >= -1e-9 * values.abs().max()


@given(shapes, rates, st.integers(0, 2**31))
def test_rotating_the_channels_rotates_the_result(shape, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator).double())
    torch.testing.assert_close(reweight(x @ rotation, rate), reweight(x, rate) @ rotation)


@given(shapes, rates, st.integers(0, 2**31))
def test_tokens_may_come_in_any_order(shape, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    order = torch.randperm(shape[0], generator=generator)
    torch.testing.assert_close(reweight(x[order], rate), reweight(x, rate)[order])


@given(shapes, st.integers(0, 2**31))
def test_rate_zero_is_the_identity_bit_for_bit(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(reweight(x, 0.0), x)


def test_rows_do_not_see_each_other():
    x = matrices("full rank", 16, 64)
    torch.testing.assert_close(reweight(x, -1.0)[1:], reweight(x[1:], -1.0))


def test_only_the_named_sides_are_touched():
    schedule = square((1, 2, 4, 6, 8))
    method = DiverseVAR(ssr=1.0, sar=1.0, sides=(4, 6), site="model")
    touched = []
    for scale in schedule:
        x = torch.randn(2, scale.tokens, 32)
        if not torch.equal(method.input(x, scale), x):
            touched.append(scale.side)
    assert touched == [4, 6]


@pytest.mark.parametrize("site", ["model", "block"])
def test_strengths_zero_run_the_model_as_it_is(site):
    method, scale = DiverseVAR(site=site), square((1, 2, 4))[2]
    x = torch.randn(2, 16, 32)
    assert method.input(x, scale) is x
    assert method.block(lambda x: x, 0, scale, x) is x
    assert method.output(x, scale) is x


@pytest.mark.parametrize("strength", [math.nan, math.inf, -1.0])
def test_impossible_strengths_are_refused(strength):
    with pytest.raises(UserError, match="ssr must be a number of 0 or more"):
        DiverseVAR(ssr=strength)


def test_an_unknown_side_is_refused():
    context = Context(square((1, 2, 4)), [0], [0], Labels(torch.tensor([0])), [], 2, 6)
    with pytest.raises(UserError, match="no token map of side 5; its sides are 1, 2, 4"):
        DiverseVAR(ssr=1.0, sides=(5,)).begin(context)
