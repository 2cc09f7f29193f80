"""What the shipped bundle's default distance sees: the finest details too, the more the stronger they are."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from afv_metric import DEFAULT_BUNDLE, AFVDistance, load_bundle
from afv_metric.bundles.resolve import find_bundle
from afv_metric.scale import Scale


@pytest.fixture(scope="module")
def distance():
    return AFVDistance()


def _smooth(count=2, side=64):
    """Smooth colour images, (N, 3, side, side)."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).clamp(-0.7, 0.7)


def _checkerboard(images):
    rows, columns = torch.arange(images.shape[2])[:, None], torch.arange(images.shape[3])
    return ((rows + columns) % 2 * 2.0 - 1).expand_as(images)


def _hot_pixel(images):
    change = torch.zeros_like(images)
    change[:, :, 31, 30] = 1
    return change


def _line(images):
    change = torch.zeros_like(images)
    change[:, :, 21] = 1
    return change


@pytest.mark.parametrize("detail", [_checkerboard, _hot_pixel, _line])
def test_details_of_one_pixel_are_seen_and_count_by_their_strength(distance, detail):
    images = _smooth()
    change = detail(images)
    distances = [distance(images, images + strength * change) for strength in (0.02, 0.05, 0.1, 0.2, 0.3)]
    assert (distances[0] > 1e-7).all()
    for weaker, stronger in itertools.pairwise(distances):
        assert (stronger > weaker).all()


@pytest.mark.parametrize("steps", [(1, 1), (1, 0), (0, 1)])
def test_alternating_pixels_are_seen_far_from_borders(distance, steps):
    # Means of 2x2 pixels, as the first convolution has them, remove them: the texture of the image itself is needed.
    images, middle = _smooth(side=96), torch.zeros(96, 96)
    middle[24:72, 24:72] = 1
    rows, columns = torch.arange(96)[:, None], torch.arange(96)
    alternating = (rows * steps[0] + columns * steps[1]) % 2 * 2.0 - 1
    distances = [distance(images, images + strength * alternating, mask=middle) for strength in (0.06, 0.1, 0.2, 0.3)]
    assert (distances[0] > 1e-4).all()
    for weaker, stronger in itertools.pairwise(distances):
        assert (stronger > weaker).all()


def test_a_line_that_moves_by_a_pixel_is_seen_the_more_the_brighter_it_is(distance):
    images = _smooth()
    distances = []
    for strength in (0.05, 0.1, 0.2, 0.3):
        line = strength * _line(images)
        distances.append(distance(images + line, images + line.roll(1, 2)))
    assert (distances[0] > 1e-7).all()
    for weaker, stronger in itertools.pairwise(distances):
        assert (stronger > weaker).all()


def test_a_pair_a_column_apart_is_nearer_than_two_pictures(distance):
    images = _smooth(2, 96)
    shifted = distance(images[..., :-1], images[..., 1:])
    assert (shifted < distance(images[:1], images[1:])).all()


def test_the_table_is_of_this_bundle():
    """After a change of the bundle: afv-metric calibrate, see docs/numbers.md."""
    folder = find_bundle(DEFAULT_BUNDLE)
    assert Scale.load(folder, load_bundle(folder).hash).images == 200
