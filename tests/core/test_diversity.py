"""Diversity measures on batches of known diversity."""

import pytest
import torch
from torch.nn import functional as F

from diversevar_core.diversity import (
    mean_distance,
    most_different,
    pixel_features,
    vendi_score,
)
from diversevar_core.errors import UserError


def clusters(sizes):
    """Features of clusters that are at right angles to each other."""
    axes = torch.eye(len(sizes))
    return torch.cat([axes[i].expand(size, -1) for i, size in enumerate(sizes)])


@pytest.mark.parametrize(("sizes", "score"), [((5,), 1), ((1, 1, 1), 3), ((4, 4), 2)])
def test_vendi_score_counts_equal_clusters(sizes, score):
    assert vendi_score(clusters(sizes)) == pytest.approx(score)


def test_vendi_score_of_unequal_clusters_lies_between():
    assert 1 < vendi_score(clusters((7, 1))) < vendi_score(clusters((4, 4)))


def test_mean_distance():
    assert mean_distance(clusters((3,))) == pytest.approx(0)
    assert mean_distance(clusters((1, 1))) == pytest.approx(1)
    assert mean_distance(clusters((2, 1))) == pytest.approx(2 / 3)
    assert mean_distance(clusters((1,))) == 0


def test_the_most_different_come_from_different_clusters():
    features = clusters((5, 2, 1))
    assert len({int(features[i].argmax()) for i in most_different(features, 3)}) == 3
    assert most_different(features, 8) == list(range(8))


def test_an_outlier_of_many_is_not_chosen():
    loner = torch.tensor([[-0.3, 0.0, 1.0]])  # farther from the first cluster than the second is
    many, few = (torch.cat((F.pad(clusters((size, size - 5)), (0, 1)), loner)) for size in (32, 8))
    assert most_different(many, 2)[1] < len(many) - 1
    assert most_different(few, 2)[1] == len(few) - 1


def test_more_than_there_are_is_refused():
    with pytest.raises(UserError, match="There are 2 images to pick from, so 3 is no choice"):
        most_different(clusters((2,)), 3)


def test_pixels_tell_images_apart():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 3, 64, 64, generator=generator)
    same = vendi_score(pixel_features(torch.stack((one, one))))
    assert same == pytest.approx(1)
    assert vendi_score(pixel_features(torch.stack((one, other)))) > 1.5


@pytest.mark.parametrize("grey", [0.0, 0.25, 0.5, 1.0])
def test_equal_images_are_one_image(grey):
    features = pixel_features(torch.full((3, 3, 64, 64), grey))
    assert vendi_score(features) == pytest.approx(1)
    assert mean_distance(features) == pytest.approx(0)
    assert most_different(features, 2)


def test_grey_differs_from_an_image_by_a_right_angle():
    features = torch.cat((torch.zeros(1, 4), torch.ones(1, 4)))
    assert mean_distance(features) == 1
    assert vendi_score(features) == pytest.approx(2)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("measure", [vendi_score, mean_distance, lambda f: most_different(f, 2)])
def test_images_of_nan_are_refused(measure, number):
    features = clusters((2, 1))
    features[1, 0] = number
    with pytest.raises(UserError, match="Image 2 of 3 cannot be compared: .* NaN or infinity"):
        measure(features)
