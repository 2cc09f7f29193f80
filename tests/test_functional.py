import numpy as np
import pytest
import torch
from conftest import TINY_BUNDLE, make_images
from PIL import Image

from afv_metric import AFVDistance, functional, read_image
from afv_metric.functional import afv_distance
from afv_metric.images import ImageError


def test_whatever_holds_an_image_gives_the_distance_of_its_tensor(bundle, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 32, 3), np.uint8)
    paths = [tmp_path / f"{index}.png" for index in (0, 1)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    expected = AFVDistance(bundle)(*(torch.from_numpy(image).permute(2, 0, 1) for image in pixels))
    for kind in (str, Image.open, lambda path: np.asarray(Image.open(path)), read_image):
        assert torch.equal(afv_distance(*map(kind, paths), weights=bundle), expected)
    declared = read_image(pixels[0] / 255, data_range=(0, 1))
    assert torch.equal(afv_distance(declared, paths[1], weights=TINY_BUNDLE), expected)
    with pytest.raises(ImageError, match=r"data_range=\(0, 1\)"):
        afv_distance(pixels[0] / 255, paths[1], weights=bundle)


def test_a_module_is_made_once_per_settings(bundle):
    first, second = (make_images(2, seed=seed) for seed in (1, 2))
    functional._metric.cache_clear()
    for form in ("fisher", "local", "fisher"):
        found = afv_distance(first, second, weights=bundle, form=form, reduction="mean")
        assert torch.equal(found, AFVDistance(bundle, form=form)(first, second).mean())
    assert functional._metric.cache_info()[:2] == (1, 2)
    total, parts = afv_distance(first, second, weights=bundle, ret_per_layer=True)
    torch.testing.assert_close(sum(parts.values()), total)


def test_unknown_settings_are_explained(bundle):
    with pytest.raises(TypeError, match="did you mean 'pooling'"):
        afv_distance(make_images(1), make_images(1), weights=bundle, poling=2)
