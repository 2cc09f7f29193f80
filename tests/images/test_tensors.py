import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from afv_metric.images.tensors import check_range, pad_to_multiple, read_image, to_network_range


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_files_of_any_mode_become_rgb(tmp_path, mode):
    Image.new("RGB", (7, 5), (10, 10, 10)).convert(mode).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert image.shape == (1, 3, 5, 7)
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [10]


def test_pixels_are_read_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png")[0].permute(1, 2, 0).numpy(), pixels)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    Image.fromarray(np.full((5, 7), 200 * 256 + 99, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").unique().tolist() == [200]


def test_thirty_two_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(OSError, match="32 bits a channel"):
        read_image(tmp_path / "float.tiff")


def test_files_that_are_no_images_are_refused(tmp_path):
    (tmp_path / "image.png").write_text("not an image")
    with pytest.raises(OSError, match="cannot identify image file"):
        read_image(tmp_path / "image.png")


def test_gradients_pass_through_the_range():
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    to_network_range(image, normalize=True, dtype=torch.float64).sum().backward()
    assert (image.grad == 2).all()


def test_ranges():
    assert to_network_range(torch.zeros(3, 32, 32), normalize=True, dtype=torch.float32).unique().tolist() == [-1]
    assert to_network_range(torch.zeros(3, 32, 32), normalize=False, dtype=torch.float32).unique().tolist() == [0]
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 32, 2).repeat(1, 1, 1, 16)
    for normalize in (False, True):
        assert to_network_range(pixels, normalize=normalize, dtype=torch.float32).unique().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("low", "high", "normalize", "wrong"),
    [
        (-1.0, 1.0, False, False),
        (-1.5, 1.5, False, False),
        (-5.0, 1.0, False, True),
        (0.0, 255.0, False, True),
        (-1e-6, 1.0000001, True, False),
        (-1.0, 1.0, True, True),
        (0.0, 255.0, True, True),
    ],
)
def test_range_mistakes(low, high, normalize, wrong):
    images = torch.tensor([low, high])
    if wrong:
        with pytest.raises(ValueError, match="expected"):
            check_range(images, normalize=normalize)
    else:
        assert check_range(images, normalize=normalize) is False


def test_a_black_image_is_no_mistake():
    assert check_range(torch.zeros(4), normalize=False) is False


def test_padding_repeats_the_edge():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    padded = pad_to_multiple(images, 4)
    assert torch.equal(padded[..., :3, :], images)
    assert torch.equal(padded[..., 3, :], images[..., 2, :])
    assert pad_to_multiple(padded, 4) is padded


def test_files_are_turned_as_their_orientation_says(tmp_path):
    picture = Image.fromarray((np.arange(40 * 33 * 3) % 251).astype(np.uint8).reshape(40, 33, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise shows it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "plain.png")
    turned, plain = read_image(tmp_path / "turned.png"), read_image(tmp_path / "plain.png")
    assert torch.equal(turned, plain.rot90(-1, (2, 3)))


@pytest.mark.parametrize("normalize", [False, True])
def test_images_that_are_not_numbers_are_refused(normalize):
    with pytest.raises(ValueError, match="from nan to nan"):
        check_range(torch.tensor([0.0, torch.nan]), normalize=normalize)
