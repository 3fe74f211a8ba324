"""How different the images of a batch are, and which of them differ most."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UserError
from .resize import area

THUMBNAIL = 32  # side in pixels of the small copies that are compared without better features
CROWD = 25  # a chosen image should resemble one in so many others


def pixel_features(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in 0..1 -> features (B, C): their small copies, minus mid-grey."""
    return area(images, THUMBNAIL, THUMBNAIL).flatten(1) - 0.5


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity of all pairs of features (B, C): (B, B) float64.

    Features of zeros only (a mid-grey image) count as equal to each other and unlike all others.
    Raises UserError if features are not finite.
    """
    features = features.cpu().double()
    for i, finite in enumerate(features.isfinite().all(dim=1).tolist()):
        if not finite:
            raise UserError(
                f"Image {i + 1} of {len(features)} cannot be compared: it contains NaN or "
                "infinity; check the node that made it."
            )
    length = features.norm(dim=1, keepdim=True)
    zero = (length == 0).double()
    unit = features / (length + zero)
    return (unit @ unit.T + zero @ zero.T).clamp(-1, 1)


def vendi_score(features: Tensor) -> float:
    """The effective number of different images, 1 to B, from features (B, C).

    It is the exponential of the entropy of the similarity matrix's eigenvalues (Friedman and Dieng,
    "The Vendi Score", arXiv 2210.02410).
    """
    values = torch.linalg.eigvalsh(similarity(features) / len(features)).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()


def mean_distance(features: Tensor) -> float:
    """Mean cosine distance of all pairs of features (B, C); 0 for a single image."""
    pairs = torch.triu_indices(len(features), len(features), 1)
    if pairs.shape[1] == 0:
        return 0.0
    return (1 - similarity(features)[pairs[0], pairs[1]]).mean().item()


def most_different(features: Tensor, count: int) -> list[int]:
    """Indices, ascending, of ``count`` features (B, C) that are far from each other.

    Greedy k-center: the first one is the most similar to all others, and each further one is the
    farthest from those chosen so far (Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985). From ``CROWD`` features on, the distance to its own nearest neighbours is
    subtracted, as an image that no other resembles is often a broken one.
    """
    if not 1 <= count <= len(features):
        raise UserError(f"There are {len(features)} images to pick from, so {count} is no choice.")
    near = similarity(features)
    own = near.topk(1 + len(features) // CROWD, dim=1).values.mean(dim=1)  # itself among them
    chosen = [int(near.mean(dim=1).argmax())]
    while len(chosen) < count:
        nearest = near[chosen].amax(dim=0) - own
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    return sorted(chosen)
