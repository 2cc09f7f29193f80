import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from afv_metric.networks import DiscriminatorConfig
from afv_metric.train.divergence import DivergenceError
from experiments.supervised import classify_images, crop_and_flip, supervised_network, train_supervised

CONFIG = DiscriminatorConfig(width=4, slope=0.2, head="position", gain=8.0)


def make_images(count=64, seed=0):
    """Noise, lighter on the top of the first class and on the bottom of the second."""
    drawn = torch.Generator().manual_seed(seed)
    images = torch.randint(128, (count, 3, 32, 32), dtype=torch.uint8, generator=drawn)
    labels = torch.arange(count) % 2
    images[labels == 0, :, :16] += 100
    images[labels == 1, :, 16:] += 100
    return images, labels


class TestNetwork:
    def test_has_the_shape_of_the_discriminator(self):
        network = supervised_network(CONFIG, classes=7)
        kinds = [type(module) for module in network.modules()]
        assert kinds.count(nn.BatchNorm2d) == 12  # three convolutions in each of four blocks
        assert not any(parametrize.is_parametrized(module) for module in network.modules())
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)

    def test_head_is_a_mean_over_positions(self):
        network = supervised_network(CONFIG, classes=7).eval()
        images = torch.rand(2, 3, 32, 32)
        maps = nn.functional.leaky_relu(network.blocks(images), CONFIG.slope)
        torch.testing.assert_close(network(images), network.head(maps).mean((2, 3)))

    def test_seed(self):
        first, again, other = (supervised_network(CONFIG, 3, seed).head.weight for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestCropAndFlip:
    def test_every_image_is_a_crop_of_its_padded_self_or_of_its_mirror(self):
        images, _ = make_images(6)
        padded = nn.functional.pad(images, (4, 4, 4, 4))
        moved = crop_and_flip(images, torch.Generator().manual_seed(1))
        found = []
        for image, result in zip(padded, moved, strict=True):
            found += [
                (top, left, mirrored)
                for top in range(9)
                for left in range(9)
                for mirrored in (False, True)
                if torch.equal(image[:, top : top + 32, left : left + 32].flip([2] if mirrored else []), result)
            ]
        assert len(found) == 6
        assert len({(top, left) for top, left, _ in found}) > 2
        assert {mirrored for _, _, mirrored in found} == {False, True}

    def test_keeps_type_and_shape(self):
        moved = crop_and_flip(torch.zeros(2, 3, 40, 36, dtype=torch.uint8), torch.Generator())
        assert (moved.shape, moved.dtype) == ((2, 3, 40, 36), torch.uint8)


class TestTraining:
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_learns(self, precision):
        images, labels = make_images()
        network = supervised_network(CONFIG, classes=2)
        train_supervised(network, images.__getitem__, labels, epochs=6, batch_size=16, precision=precision)
        others, truth = make_images(seed=1)
        assert not network.training
        assert (classify_images(network, others, batch_size=24) == truth).float().mean() > 0.9

    def test_seed_decides(self):
        images, labels = make_images()
        heads = []
        for seed in (0, 0, 1):
            network = supervised_network(CONFIG, classes=2)
            train_supervised(network, images.__getitem__, labels, epochs=1, batch_size=32, seed=seed)
            heads.append(network.head.weight)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])

    def test_divergence_is_told(self):
        images, labels = make_images()
        network = supervised_network(CONFIG, classes=2)
        with pytest.raises(DivergenceError, match="lower its rate 1e\\+30"):
            train_supervised(network, images.__getitem__, labels, epochs=3, batch_size=16, rate=1e30)

    def test_no_epochs(self):
        images, labels = make_images()
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            train_supervised(supervised_network(CONFIG, 2), images.__getitem__, labels, epochs=0)
