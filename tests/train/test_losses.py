import math

import pytest
import torch

from afv_metric.train.losses import discriminator_loss, generator_loss, gradient_penalty, proximal_term


def test_hinge_by_hand():
    real, fake, corrupted = torch.tensor([[2.0], [0.5]]), torch.tensor([[-2.0], [0.0]]), torch.tensor([[1.0]])
    # real: (0 + 0.5) / 2; fake: (0 + 1) / 2; corrupted: 2; kinds of negatives weigh the same
    assert discriminator_loss("hinge", real, [fake]).item() == pytest.approx(0.25 + 0.5)
    assert discriminator_loss("hinge", real, [fake, corrupted]).item() == pytest.approx(0.25 + (0.5 + 2) / 2)
    assert generator_loss("hinge", fake).item() == pytest.approx(1.0)


def test_least_squares_by_hand():
    logits = torch.logit(torch.tensor([[0.9], [0.7]]))
    negatives = torch.logit(torch.tensor([[0.2], [0.4]]))
    expected = (0.01 + 0.09) / 2 + (0.04 + 0.16) / 2
    assert discriminator_loss("least-squares", logits, [negatives]).item() == pytest.approx(expected)
    assert generator_loss("least-squares", negatives).item() == pytest.approx((0.64 + 0.36) / 2)


def test_logistic_by_hand():
    real, negatives = torch.logit(torch.tensor([[0.9], [0.7]])), torch.logit(torch.tensor([[0.2], [0.4]]))
    expected = -(math.log(0.9) + math.log(0.7)) / 2 - (math.log(0.8) + math.log(0.6)) / 2
    assert discriminator_loss("logistic", real, [negatives]).item() == pytest.approx(expected)
    assert generator_loss("logistic", negatives).item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)


def test_unknown_losses_are_refused():
    logits = torch.zeros(2, 1)
    for lose in (lambda: generator_loss("hing", logits), lambda: discriminator_loss("hing", logits, [logits])):
        with pytest.raises(ValueError, match='must be "hinge", "logistic" or "least-squares", got \'hing\''):
            lose()


def test_the_proximal_term_is_the_squared_distance_of_images():
    images, averaged = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    assert proximal_term(images, averaged, 0.0).item() == pytest.approx(0.25 * 48)
    torch.manual_seed(0)
    noisy = torch.stack([proximal_term(averaged, averaged, 0.1) for _ in range(200)])
    assert noisy.mean().item() == pytest.approx(0.01 * 48, rel=0.1)


def test_the_gradient_penalty_is_half_the_squared_gradient_of_the_mean_logit():
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    slopes = torch.tensor([1.0, 3.0])
    # Two positions per image with slopes 1 and 3 for all 48 pixels: the mean logit has slope 2.
    logits = images.sum((1, 2, 3))[:, None] * slopes
    penalty = gradient_penalty(logits, images)
    assert penalty.item() == pytest.approx(0.5 * 48 * 4)


def test_the_gradient_penalty_can_be_descended():
    weight = torch.tensor(2.0, requires_grad=True)
    images = torch.ones(1, 3, 2, 2, requires_grad=True)
    gradient_penalty((weight * images).sum((1, 2, 3))[:, None], images).backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(12 * 2.0)
