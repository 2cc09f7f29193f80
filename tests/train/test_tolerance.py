"""The tolerance of shifts: what its ratios measure, what it gains from, and that training lowers them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from afv_metric.networks import Discriminator, DiscriminatorConfig
from afv_metric.train import tolerance
from afv_metric.train.tolerance import shift_ratios, tolerance_loss


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig((8, 8, 8, 8), slope=0.2, strided_stem=True))


def _photographs(count):
    return F.interpolate(torch.randn(count, 3, 24, 24), size=(64, 64), mode="bicubic").clamp(-1, 1)


def test_images_without_detail_are_as_near_shifted_as_blurred(discriminator):
    ratios = shift_ratios(discriminator, torch.zeros(4, 3, 64, 64))
    torch.testing.assert_close(ratios, torch.ones(2))


def test_a_shift_of_waves_along_the_other_axis_is_no_change(discriminator, monkeypatch):
    waves = torch.sin(torch.arange(64.0)).expand(2, 3, 64, 64)  # equal in all rows
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1))  # down
    assert shift_ratios(discriminator, waves)[0] < 1e-2
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(0))  # to the right
    assert shift_ratios(discriminator, waves)[0] > 0.5


def test_the_loss_is_what_exceeds_the_limits():
    assert tolerance_loss(torch.tensor([0.1, 0.2])) == 0
    excess = tolerance_loss(torch.tensor([0.21 * math.e, 0.3 * math.e**2]))
    assert excess.item() == pytest.approx(0.5 * 1 + 2)


def test_only_some_images_of_a_large_batch_are_taken(discriminator, monkeypatch):
    images = _photographs(6)
    monkeypatch.setattr(tolerance, "_IMAGES", 3)
    torch.manual_seed(1)
    discriminator.eval()  # else each pass moves the spectral norms
    whole = shift_ratios(discriminator, images)
    torch.manual_seed(1)
    torch.testing.assert_close(whole, shift_ratios(discriminator, images[:3]))


def test_training_makes_the_network_tolerant(discriminator):
    torch.manual_seed(0)
    images = _photographs(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = tolerance_loss(shift_ratios(discriminator, images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
