"""How different the images of a batch are, and which of them differ most."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.resize import area

THUMBNAIL = 32  # pixels along the side of what is compared where there are no better features
CROWD = 25  # one in so many images should resemble one that is picked


def pixel_features(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 -> features (B, C): small, centred copies of them."""
    return area(images, THUMBNAIL, THUMBNAIL).flatten(1) - 0.5


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity of every pair of features (B, C) -> (B, B), float64.

    Features of zeros, as of a mid-grey image, point nowhere: they resemble each other only.
    ValueError where features are not finite.
    """
    features = features.cpu().double()
    for i, finite in enumerate(features.isfinite().all(dim=1).tolist()):
        if not finite:
            raise ValueError(
                f"Image {i + 1} of {len(features)} cannot be compared: it has numbers that are "
                "NaN or infinite; look at what made it."
            )
    length = features.norm(dim=1, keepdim=True)
    nowhere = (length == 0).double()
    unit = features / (length + nowhere)
    return (unit @ unit.T + nowhere @ nowhere.T).clamp(-1, 1)


def vendi_score(features: Tensor) -> float:
    """The effective number of different images, 1 to B, of features (B, C).

    The exponential of the entropy of the similarity matrix's eigenvalues (Friedman and Dieng,
    "The Vendi Score", arXiv 2210.02410).
    """
    values = torch.linalg.eigvalsh(similarity(features) / len(features)).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()


def mean_distance(features: Tensor) -> float:
    """Mean cosine distance of the pairs of features (B, C), 0 for a single one."""
    pairs = torch.triu_indices(len(features), len(features), 1)
    if pairs.shape[1] == 0:
        return 0.0
    return (1 - similarity(features)[pairs[0], pairs[1]]).mean().item()


def most_different(features: Tensor, count: int) -> list[int]:
    """The places, ascending, of ``count`` features (B, C) that lie far from each other.

    Greedy: the first is the one nearest to the mean, every further one the farthest from those
    that are already chosen (Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985). Of ``CROWD`` or more, how far its own nearest ones lie is taken off that: what
    nothing else resembles is more often a broken image than an idea.
    """
    if not 1 <= count <= len(features):
        raise ValueError(f"There are {len(features)} images to pick from, so {count} is no choice.")
    near = similarity(features)
    own = near.topk(1 + len(features) // CROWD, dim=1).values.mean(dim=1)  # itself among them
    chosen = [int(near.mean(dim=1).argmax())]
    while len(chosen) < count:
        nearest = near[chosen].amax(dim=0) - own
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    return sorted(chosen)
