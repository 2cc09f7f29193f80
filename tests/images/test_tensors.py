import pytest
import torch

from afv_metric.images.tensors import check_range, pad_to_multiple, to_network_range


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
        (-1.2, 1.2, False, False),
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


@pytest.mark.parametrize("normalize", [False, True])
def test_values_that_are_not_numbers_are_counted(normalize):
    with pytest.raises(ValueError, match="1 of 2 values that are NaN or infinite"):
        check_range(torch.tensor([0.0, torch.nan]), normalize=normalize)


def test_images_normalised_by_imagenet_are_warned_of_once():
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(1, 3, 64, 64, generator=generator) - 0.45) / 0.225
    with pytest.warns(UserWarning, match="clearly beyond .* undo a normalisation"):
        assert check_range(images, normalize=False)
    assert check_range(images, normalize=False, warned=True)  # silently


@pytest.mark.parametrize("undershoot", [0.0, -0.02, -0.3])
def test_hardly_a_negative_value_is_warned_of(undershoot):
    images = torch.linspace(0, 1, 4096)
    images[:9] = undershoot
    with pytest.warns(UserWarning, match="hardly one negative: .* pass normalize=True"):
        assert check_range(images, normalize=False)
    assert not check_range(torch.linspace(-0.2, 1, 4096), normalize=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 9.0])
def test_predictions_and_check_warn_turn_errors_into_one_warning(value):
    images = torch.tensor([-0.5, value])
    for settings, given in (({"check": "warn"}, images), ({"check": "error"}, images.clone().requires_grad_())):
        with pytest.warns(UserWarning, match="NaN or infinite" if value > 9 or value != value else "from -0.5 to 9"):
            assert check_range(given, normalize=False, **settings)
        assert check_range(given, normalize=False, warned=True, **settings)
    assert not check_range(images, normalize=False, check=False)
    with pytest.raises(ValueError, match="NaN or infinite|expected"):
        check_range(images, normalize=False, warned=True)
