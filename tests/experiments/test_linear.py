import numpy as np
import pytest
import torch

from afv_metric.train.divergence import DivergenceError
from experiments.linear import (
    LinearClassifier,
    Scaling,
    Schedule,
    StoredBatches,
    count_correct,
    measure_scaling,
    train_svm,
)

UNSCALED = Scaling(None, torch.tensor(1.0))


def make_problem(count=120, size=6, classes=3, seed=0):
    """Overlapping clouds, with rows of a length of about 1."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=drawn)
    features = centres[labels] + torch.randn(count, size, generator=drawn)
    return features / features.norm(dim=1).mean(), labels


class TestTrainSvm:
    @pytest.mark.parametrize(
        ("penalty", "batch_size", "epochs", "tolerance"),
        [(1e-1, 120, 300, 1e-5), (1e-2, 120, 600, 1e-4), (1e-3, 120, 1200, 1e-3), (1e-1, 40, 300, 5e-3)],
    )
    def test_equals_linear_svc(self, penalty, batch_size, epochs, tolerance):
        svm = pytest.importorskip("sklearn.svm")
        features, labels = make_problem()
        peer = svm.LinearSVC(C=1 / (penalty * len(labels)), loss="squared_hinge", dual=False, tol=1e-9, max_iter=10_000)
        peer.fit(features.double().numpy(), labels.numpy())
        batches = StoredBatches(features, labels, batch_size, seed=0)
        (classifier,) = train_svm(batches, 3, UNSCALED, Schedule(epochs), [penalty])
        np.testing.assert_allclose(classifier.weight, peer.coef_, atol=tolerance)
        np.testing.assert_allclose(classifier.bias, peer.intercept_, atol=tolerance)

    def test_gradient_vanishes_at_the_objective_in_the_docstring(self):
        features, labels = make_problem()
        (found,) = train_svm(StoredBatches(features, labels, 120, 0), 3, UNSCALED, Schedule(1500, 0.5), [1e-2])
        weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
        signs = torch.where(labels[:, None] == torch.arange(3), 1, -1)
        slack = (1 - signs * (features @ weight.T + bias)).clamp_min(0)
        objective = 0.005 * (weight.pow(2).sum() + bias.pow(2).sum()) + slack.pow(2).mean(0).sum()
        slopes = torch.autograd.grad(objective, (weight, bias))
        assert max(slope.abs().max() for slope in slopes) < 1e-4

    def test_penalties_together_are_penalties_alone(self):
        features, labels = make_problem()
        batches = StoredBatches(features, labels, 32, seed=3)
        schedule = Schedule(3, dropout=0.25)
        together = train_svm(batches, 3, UNSCALED, schedule, [1e-1, 1e-4])
        for penalty, classifier in zip((1e-1, 1e-4), together, strict=True):
            (alone,) = train_svm(batches, 3, UNSCALED, schedule, [penalty])
            torch.testing.assert_close(alone.weight, classifier.weight)
            torch.testing.assert_close(alone.bias, classifier.bias)
        assert not torch.allclose(together[0].weight, together[1].weight)

    def test_scaling_is_part_of_the_classifier(self):
        features, labels = make_problem()
        raw = features * torch.tensor([1.0, 10, 100, 0.1, 1, 1]) + 5
        scaling = measure_scaling(raw, each=True)
        scaled = (raw - scaling.mean) * scaling.scale
        (of_raw,) = train_svm(StoredBatches(raw, labels, 40, 0), 3, scaling, Schedule(5), [1e-3])
        (of_scaled,) = train_svm(StoredBatches(scaled, labels, 40, 0), 3, UNSCALED, Schedule(5), [1e-3])
        torch.testing.assert_close(of_raw.decide(raw), of_scaled.decide(scaled), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("each", [False, True])
    @pytest.mark.parametrize("kind", [torch.float16, torch.float32])
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_table_is_not_changed(self, kind, dropout, each):
        features, labels = make_problem()
        table = features.to(kind)
        train_svm(
            StoredBatches(table, labels, 50, 0),
            3,
            measure_scaling(table, each=each),
            Schedule(1, dropout=dropout),
            [0.1],
        )
        assert torch.equal(table, features.to(kind))

    def test_half_precision_tells_classes_apart(self):
        features, labels = make_problem(size=200)
        batches = StoredBatches(features.half(), labels, 16, seed=0)
        scaling = measure_scaling(features, each=False)
        (classifier,) = train_svm(batches, 3, scaling, Schedule(20, dropout=0.5), [1e-4])
        assert count_correct([classifier], [(features.half(), labels)])[0] > 115

    def test_divergence_is_told(self):
        features, labels = make_problem()
        with pytest.raises(DivergenceError, match="lower its rate 1e\\+06"):
            train_svm(StoredBatches(features * 1e6, labels, 10, 0), 3, UNSCALED, Schedule(20, rate=1e6), [1e-3])

    @pytest.mark.parametrize("penalties", [[1e-3], [1e-1, 1e-3]])
    def test_worse_than_nothing_is_divergence(self, penalties):
        drawn = torch.Generator().manual_seed(0)
        features, labels = torch.randn(1000, 1, generator=drawn), torch.randint(2, (1000,), generator=drawn)
        batches = StoredBatches(features, labels, 128, seed=0)
        with pytest.raises(DivergenceError, match=r"loss of .* where weights of 0 have 1; lower its rate 2$"):
            train_svm(batches, 2, UNSCALED, Schedule(15), penalties)
        train_svm(batches, 2, UNSCALED, Schedule(15, rate=0.5), penalties)

    @pytest.mark.parametrize(("count", "epochs"), [(200, 2), (200, 60), (1000, 15)])
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_nothing_to_learn_is_no_divergence(self, count, epochs, dropout):
        features, _ = make_problem(count)
        labels = torch.randint(2, (count,), generator=torch.Generator().manual_seed(7))
        for penalty in (1e-6, 1e-2):
            train_svm(StoredBatches(features, labels, 128, 0), 2, UNSCALED, Schedule(epochs, 2.0, dropout), [penalty])

    @pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": 1, "rate": 0}, {"epochs": 1, "dropout": 1.0}])
    def test_impossible_schedules(self, wrong):
        with pytest.raises(ValueError, match="must be"):
            Schedule(**wrong)


class TestStoredBatches:
    @pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
    def test_every_example_once_an_epoch(self, count, batch_size):
        batches = StoredBatches(torch.arange(count)[:, None].half(), torch.arange(count), batch_size, seed=1)
        epochs = [list(batches.epoch(number)) for number in range(5)]
        for epoch in epochs:
            assert len(epoch) == len(batches)
            assert sorted(torch.cat([labels for _, labels in epoch]).tolist()) == list(range(count))
            assert all(torch.equal(features[:, 0].long(), labels) for features, labels in epoch)

    def test_epochs_differ_and_repeat(self):
        batches = StoredBatches(torch.zeros(50, 1), torch.arange(50), 8, seed=1)
        first, again, second = (torch.cat([labels for _, labels in batches.epoch(n)]) for n in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)

    def test_whole_batches_are_no_copies(self):
        table = torch.zeros(40, 3)
        inside = [features for features, _ in StoredBatches(table, torch.zeros(40), 10, 0).epoch(0)]
        shared = [features.untyped_storage().data_ptr() == table.untyped_storage().data_ptr() for features in inside]
        assert sum(shared) >= 3


class TestMeasureScaling:
    @pytest.mark.parametrize("each", [False, True])
    def test_mean_squared_length_is_one(self, each):
        features = torch.randn(600, 7) * torch.arange(1, 8) + 3
        mean, scale = measure_scaling(features, each=each)
        scaled = (features - (0 if mean is None else mean)) * scale
        assert scaled.pow(2).sum(1).mean().item() == pytest.approx(1, rel=1e-4)
        if each:
            torch.testing.assert_close(scaled.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
            torch.testing.assert_close(scaled.var(0, correction=0), torch.full((7,), 1 / 7), rtol=1e-3, atol=0)

    @pytest.mark.parametrize("each", [False, True])
    def test_batches_are_a_table(self, each):
        features = (torch.randn(600, 7) + 3).half()
        whole, parts = (measure_scaling(given, each=each) for given in (features, iter(features.split(256))))
        assert torch.equal(whole.scale, parts.scale)
        assert whole.mean is parts.mean is None or torch.equal(whole.mean, parts.mean)
        torch.testing.assert_close(measure_scaling(features.split(17), each=each).scale, whole.scale)

    def test_constant_features_are_left_out(self):
        features = torch.stack([torch.full((50,), 3.3), torch.randn(50)], 1)
        scale = measure_scaling(features, each=True).scale
        assert scale[0] == 0
        assert scale[1] > 0


def test_count_correct():
    first = LinearClassifier(torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
    always_one = LinearClassifier(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    batches = [(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])), (torch.tensor([[2.0]]), torch.tensor([0]))]
    assert count_correct([first, always_one], batches) == [3, 1]
