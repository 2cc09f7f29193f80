import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric.train import data
from afv_metric.train.data import augment, load_images
from afv_metric.train.negatives import corrupt


@pytest.fixture
def tree(tmp_path):
    for index in range(66):
        folder = tmp_path / f"class{index % 2}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        size = (50 + index, 70)
        Image.new("RGB" if index % 3 else "L", size, index if not index % 3 else (index,) * 3).save(
            folder / f"{index:03d}.png"
        )
    return tmp_path


def test_images_of_any_size_and_colour_are_read_in_order(tree):
    images = load_images(tree, 64, quiet=True)
    assert images.shape == (66, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[:, 0, 0, 0].tolist() == [*range(0, 66, 2), *range(1, 66, 2)]


def test_unreadable_images_are_named_and_skipped(tree, caplog):
    (tree / "class0" / "broken.jpg").write_bytes(b"no image")
    assert len(load_images(tree, 32, quiet=True)) == 66
    assert "skipped 1 unreadable images" in caplog.text
    assert "broken.jpg" in caplog.text


def test_too_few_images_are_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="holds 1 readable images; training needs at least 64"):
        load_images(tmp_path, 64, quiet=True)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of training images"):
        load_images(tmp_path / "nowhere", 64, quiet=True)


@pytest.mark.parametrize("augmentation", ["none", "flip", "paper", "multiscale"])
@pytest.mark.parametrize("size", [32, 64])
def test_crops_have_the_right_size_and_range(augmentation, size):
    torch.manual_seed(0)
    images = torch.rand(40, 3, 2 * size, 2 * size) * 2 - 1
    crops = augment(images, size, augmentation)
    assert crops.shape == (40, 3, size, size)
    assert crops.abs().max() <= 1
    assert torch.equal(augment(images, size, augmentation), crops) == (augmentation == "none")


def test_flips_are_flips():
    images = torch.rand(32, 3, 64, 64) * 2 - 1
    plain, flipped = augment(images, 32, "none"), augment(images, 32, "flip")
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(3) == flipped).flatten(1).all(1)
    assert (same | mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_native_crops_are_windows_of_the_image():
    image = torch.arange(64.0 * 64).view(1, 1, 64, 64).expand(5, 3, -1, -1)
    crops = data._random_crop(image, 32)
    assert (crops[..., 1:] - crops[..., :-1] == 1).all()
    assert (crops[..., 1:, :] - crops[..., :-1, :] == 64).all()
    assert len(crops[:, 0, 0, 0].unique()) > 1


def test_corruption_changes_every_image_and_keeps_the_range():
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(48, 3, 8, 8), size=(32, 32), mode="bilinear") * 2 - 1
    corrupted = corrupt(images)
    assert corrupted.shape == images.shape
    assert corrupted.abs().max() <= 1
    assert ((corrupted - images).abs().flatten(1).mean(1) > 1e-3).float().mean() > 0.9
    assert np.isfinite(corrupted.numpy()).all()


@pytest.mark.parametrize("count", [1, 5, 7])
def test_corruption_of_few_images(count):
    assert corrupt(torch.rand(count, 3, 32, 32)).shape == (count, 3, 32, 32)
