"""The figures against the packages that their authors have published."""

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from vendi_score import vendi

from training import metrics


@pytest.fixture
def features():
    """Two overlapping clouds (N, 24), float32, of unequal numbers."""
    generator = np.random.default_rng(0)
    real = generator.standard_normal((700, 24)) @ generator.standard_normal((24, 24))
    made = 0.7 * real[:500] + generator.standard_normal((500, 24))
    return real.astype(np.float32), made.astype(np.float32)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("rows", [64, 10_000])
def test_neighbours_equal_the_prdc_package(features, k, rows, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", rows)
    real, made = features
    expected = compute_prdc(real.astype(float), made.astype(float), nearest_k=k)
    found = metrics.neighbours(torch.from_numpy(real), torch.from_numpy(made), k)
    assert {name: values.mean().item() for name, values in found.items()} == pytest.approx(
        expected, abs=1e-6
    )
    assert 0.05 < expected["recall"] < 0.95
    assert len(found["coverage"]) == 700
    assert len(found["density"]) == 500


def test_equal_samples_reach_no_other():
    """A collapsed model repeats one real picture: it is found, its neighbours are not."""
    real = torch.randn(40, 512, generator=torch.Generator().manual_seed(0)) * 100
    found = metrics.neighbours(real, real[:1].expand(30, -1), k=5)
    assert found["coverage"].sum() >= 1
    assert found["recall"].sum() == 0
    assert found["precision"].mean() == 1


def test_too_few_images_for_k():
    with pytest.raises(ValueError, match="5 nearest neighbours need more than 5 images"):
        metrics.neighbours(torch.randn(5, 3), torch.randn(50, 3), k=5)


def test_frechet_distance_equals_the_matrix_root(features):
    a, b = (x.astype(np.float64) for x in features)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = means + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    found = metrics.frechet(*map(torch.from_numpy, features))
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_images_than_channels():
    """In one dimension it is known: (m1 - m2)^2 + (s1 - s2)^2; the other channels are constant."""
    a, b = torch.randn(2, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = 3 * b + 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    wide = [torch.cat((x, torch.ones(30, 99)), dim=1) for x in (a, b)]
    assert metrics.frechet(*wide) == pytest.approx(expected.item(), rel=1e-9)
    assert metrics.frechet(wide[0], wide[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [15, 500])
def test_vendi_score_equals_the_authors_package(features, count):
    made = features[1][:count].astype(np.float64)
    assert metrics.overall_vendi(torch.from_numpy(made)) == pytest.approx(
        vendi.score_dual(made), rel=1e-6
    )


def test_prompts_are_scored_one_by_one(features):
    made = features[1][:12]
    found = metrics.within_prompts(torch.from_numpy(made), each=4)
    expected = [vendi.score_dual(made[i : i + 4].astype(np.float64)) for i in (0, 4, 8)]
    assert found["vendi"].tolist() == pytest.approx(expected, rel=1e-6)
    cosine = (made[0] @ made[1]) / np.linalg.norm(made[0]) / np.linalg.norm(made[1])
    pair = metrics.within_prompts(torch.from_numpy(made[:2]), each=2)
    assert pair["distance"].item() == pytest.approx(1 - cosine, rel=1e-5)


def test_interval_holds_the_mean():
    values = torch.arange(200.0)
    mean, low, high = metrics.interval(values)
    assert mean == pytest.approx(99.5)
    error = 1.96 * values.std().item() / 200**0.5
    assert (low, high) == (pytest.approx(99.5 - error, abs=2), pytest.approx(99.5 + error, abs=2))
