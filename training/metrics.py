"""The figures, computed from features and scores.

Every function takes tensors and computes in float64 on the CPU. Figures that are means of one
value per image or prompt are returned as these values, for ``interval``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diversevar_core.diversity import mean_distance, vendi_score

SEED = 1000
RESAMPLES = 1000
ROWS = 1024  # of a distance matrix in memory at once


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean of (N,) values and its 95 % bootstrap interval."""
    generator = torch.Generator().manual_seed(SEED)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[picks].mean(dim=1).sort().values
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return values.mean().item(), low.item(), high.item()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two sets of features (N, C) as Gaussians: FID for Inception's features.

    Heusel et al., arXiv 1706.08500. With covariances A^T A and B^T B, the trace of the root of
    their product is the sum of the singular values of A B^T; no root of a nearly singular matrix
    is needed, so it is also exact for fewer images than channels.
    """
    a, b = a.double(), b.double()
    root_a, root_b = (
        torch.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1), mode="r").R for x in (a, b)
    )
    traces = root_a.square().sum() + root_b.square().sum()
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * overlap).item()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of features; 0 where only rounding errors remain."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squares = norms - 2 * a @ b.T
    return squares.where(squares > 1e-13 * norms, 0).sqrt()


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each of features (N, C) to its k-th nearest neighbour."""
    parts = (distances(part, features).kthvalue(k + 1) for part in features.split(ROWS))
    return torch.cat([part.values for part in parts])  # the first of k + 1 is itself


def neighbours(real: Tensor, made: Tensor, k: int) -> dict[str, Tensor]:
    """Recall, precision, density and coverage, each as values whose mean it is.

    Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991); density and coverage
    (Naeem et al., arXiv 2002.09797). real (N, C) and made (M, C) features; recall and coverage
    have a value for every real image, precision and density for every made one. Raises
    ValueError where there are too few images for k neighbours.
    """
    if min(len(real), len(made)) <= k:
        raise ValueError(
            f"{k} nearest neighbours need more than {k} images; there are {len(real)} "
            f"references and {len(made)} samples."
        )
    real, made = real.double(), made.double()
    around_real, around_made = radii(real, k), radii(made, k)
    recall, coverage, inside = [], [], torch.zeros(len(made), dtype=torch.float64)
    for part, radius in zip(real.split(ROWS), around_real.split(ROWS), strict=True):
        apart = distances(part, made)
        recall.append((apart < around_made).any(dim=1))
        near = apart < radius[:, None]
        coverage.append(near.any(dim=1))
        inside += near.sum(dim=0)
    return {
        "recall": torch.cat(recall).double(),
        "precision": (inside > 0).double(),
        "density": inside / k,
        "coverage": torch.cat(coverage).double(),
    }


def overall_vendi(features: Tensor) -> float:
    """Vendi score of all images' features (N, C), by the smaller of the two Gram matrices.

    The same as ``diversity.vendi_score``, whose (N, N) matrix is too large for many images.
    """
    unit = F.normalize(features.double())
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()


def within_prompts(features: Tensor, each: int) -> dict[str, Tensor]:
    """Mean cosine distance and Vendi score of each prompt's images.

    features: (prompts * each, C), with a prompt's images next to each other.
    """
    groups = features.unflatten(0, (-1, each))
    return {
        "distance": torch.tensor([mean_distance(group) for group in groups]).double(),
        "vendi": torch.tensor([vendi_score(group) for group in groups]).double(),
    }


def designs_and_modes(hit: Tensor, design: Tensor) -> tuple[float, float]:
    """The number of designs in one prompt's images, and the effective number of all designs.

    hit (N,) bool: whether an image shows the concept; design (N,) indices. Designs are counted in
    the images that show it; the effective number is the exponential of the designs' entropy.
    """
    share = torch.bincount(design) / len(design)
    return float(design[hit].unique().numel()), torch.special.entr(share).sum().exp().item()
