import numpy as np
import pytest

from afv_metric.images.tiles import Tiling, resize_and_center_crop


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_are_scaled_alike(channels):
    grey = np.random.default_rng(0).integers(0, 256, (70, 90, 1), np.uint8)
    for size in (32, 100):
        square = resize_and_center_crop(grey.repeat(channels, 2), size)
        assert square.shape == (size, size, channels)
        assert (square == resize_and_center_crop(grey, size)).all()


def test_the_middle_is_kept():
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[:, 68:132] = 200
    assert (resize_and_center_crop(pixels, 32) == 200).all()


@pytest.mark.parametrize("shape", [(200, 150), (128, 333), (64, 64)])
def test_every_pixel_is_in_a_native_tile(shape):
    numbers = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    tiles = Tiling(least_deviation=0).cut([numbers], 32)
    assert all(tile.shape == (32, 32, 3) for tile in tiles)
    pixels = {tuple(pixel) for tile in tiles for pixel in tile.reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in numbers.reshape(-1, 3).tolist()} <= pixels


def test_small_images_are_their_middle_square():
    pixels = np.random.default_rng(0).integers(0, 256, (63, 500, 3), np.uint8)
    (tile,) = Tiling().cut([pixels], 32)
    assert np.array_equal(tile, resize_and_center_crop(pixels, 32))


def test_empty_tiles_are_left_out_but_not_all():
    pixels = np.full((128, 128, 1), 9, np.uint8)
    assert len(Tiling().cut([pixels], 32)) == 1
    pixels[:32, :32] = np.random.default_rng(0).integers(0, 256, (32, 32, 1))
    assert len(Tiling().cut([pixels], 32)) == 3  # one of 32 x 32, one of 64 x 64, the middle square


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least one tile, got 0"):
        Tiling(most=0)
    with pytest.raises(ValueError, match='must be "area" or "image", got \'images\''):
        Tiling(weighting="images")


def test_a_bound_on_all_tiles_leaves_fewer_of_each_image():
    assert Tiling(cache_gb=1e-3).bounded(10, 100).most == 1000
    assert Tiling(cache_gb=1e-3).bounded(10, 1).most == Tiling.most
    with pytest.raises(ValueError, match=r"1e-06 GB \(--cache-gb\) have no room for a tile of each of 2,000 images"):
        Tiling(cache_gb=1e-6).bounded(2000, 1)
    assert Tiling().bounded(10**9, 12_288).most == 1  # the usual bound leaves one of each


def test_parts_share_the_tiles_of_their_image():
    slices = [np.random.default_rng(seed).integers(0, 256, (64, 64, 1), np.uint8) for seed in range(3)]
    slices.insert(0, np.zeros((64, 64, 1), np.uint8))
    assert len(Tiling().cut(slices, 32)) == 3 * 5
    (middle,) = Tiling().cut([np.full((64, 64, 1), level, np.uint8) for level in range(3)], 32)
    assert (middle == 0).all()  # the first is as good as any
