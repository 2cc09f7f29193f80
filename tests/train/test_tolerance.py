"""The order of known changes: what is measured, that it is the distance of a bundle, and that training improves it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afv_metric.fisher.comparison import Comparison, total_of
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import ActivationForm, Term
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig
from afv_metric.train import tolerance
from afv_metric.train.export import TERMS
from afv_metric.train.tolerance import distances_to_first, measure_tolerance


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig((8, 8, 8, 8), slope=0.2, strided_stem=True))


def _photographs(count, channels=3):
    return F.interpolate(torch.randn(count, channels, 24, 24), size=(64, 64), mode="bicubic").clamp(-1, 1)


def test_the_distances_are_those_of_the_form():
    torch.manual_seed(0)
    plain = Discriminator(DiscriminatorConfig((8, 8, 8, 8), slope=0.2, strided_stem=True).plain()).eval()
    views = torch.stack([_photographs(4), _photographs(4), _photographs(4)])
    with torch.no_grad():
        found = distances_to_first(plain, views, TERMS)
    engine = FisherEngine(plain.baked())
    # The statistics of the first views alone; the engine's know no levels, so each level is a form of its own.
    expected = torch.zeros(2, 4)
    for level in (0, 1):
        terms = [Term(term.kind, 0, term.layers, term.weight) for term in TERMS if term.level == level]
        first, *others = (F.avg_pool2d(view, 2**level) for view in views)
        form = ActivationForm(engine, collect_statistics(engine, [first]), 0.03, terms, pooling=8.0)
        expected += torch.stack([total_of(Comparison(form).compare_parts(first, other)) for other in others])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_views_are_shifted_blurred_and_compressed():
    torch.manual_seed(0)
    original, shifted, blurred, better, worse = tolerance._make_views(_photographs(6))
    assert original.shape == (6, 3, 56, 56)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    shifts = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    assert sum(torch.equal(shifted[inner], original.roll(shift, (2, 3))[inner]) for shift in shifts) == 1
    assert (blurred - original).diff(dim=-1).abs().mean() < original.diff(dim=-1).abs().mean()
    errors = [(one - original).square().mean((1, 2, 3)) for one in (better, worse)]
    assert (errors[0] < errors[1]).all()
    assert (errors[0] > 0).all()


def test_a_second_file_of_the_same_quality_is_nearly_the_first_on_its_grid_alone(monkeypatch):
    class Fixed:
        def uniform(self, low, high):
            return 1.0

        def integers(self, low, high=None):
            return 0 if high is None else 7.5  # quality 75

    monkeypatch.setattr(tolerance.np.random, "default_rng", lambda seed: Fixed())
    torch.manual_seed(0)
    original, _, _, same, _ = tolerance._make_views(0.5 * _photographs(4, channels=1))
    errors = (same - original).square().mean((1, 2, 3))
    assert (errors[:3] < 0.1 * errors[3]).all()


def test_images_without_detail_are_as_near_shifted_as_blurred(discriminator):
    found = measure_tolerance(discriminator, torch.zeros(4, 3, 64, 64))
    assert found.shift_ratio.item() == pytest.approx(1)
    assert found.disorder == 0


def test_the_loss_is_what_exceeds_the_limit_and_lacks_of_the_step(discriminator, monkeypatch):
    def parts_of(shifted, blurred, better, worse):
        distances = torch.tensor([[shifted], [blurred], [better], [worse]])
        monkeypatch.setattr(tolerance, "distances_to_first", lambda *_: distances)
        return measure_tolerance(discriminator, torch.zeros(1, 3, 64, 64))

    good = parts_of(0.32, 1.0, 1.0, 1.2)
    assert (good.loss, good.disorder) == (0, 0)
    assert parts_of(0.64, 1.0, 1.0, 1.2).loss.item() == pytest.approx(1.5 * 0.6931, rel=1e-3)
    bad = parts_of(0.25, 1.0, 1.2, 1.0)
    assert bad.loss.item() == pytest.approx(10 * (0.1823 + 0.15), rel=1e-3)
    assert bad.disorder == 1


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels(channels):
    torch.manual_seed(0)
    config = DiscriminatorConfig((4, 4, 4, 4), channels=channels, slope=0.2, strided_stem=True)
    found = measure_tolerance(Discriminator(config), _photographs(2, channels))
    assert all(value.isfinite() for value in found)


def test_only_some_images_of_a_large_batch_are_taken(discriminator, monkeypatch):
    images = _photographs(6)
    monkeypatch.setattr(tolerance, "_IMAGES", 3)
    torch.manual_seed(1)
    discriminator.eval()  # else each pass moves the spectral norms
    whole = measure_tolerance(discriminator, images)
    torch.manual_seed(1)
    torch.testing.assert_close(tuple(whole), tuple(measure_tolerance(discriminator, images[:3])))


def test_training_makes_the_network_tolerant(discriminator):
    torch.manual_seed(0)
    images = _photographs(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = measure_tolerance(discriminator, images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
