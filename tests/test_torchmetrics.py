"""The metrics of torchmetrics: what its own tester asks of a metric, as that tester is not in its package."""

import copy
import json
import multiprocessing
import pickle

import pytest
import torch
from conftest import TINY_BUNDLE, make_discriminator, make_images
from torch import distributed

from afv_metric import AFVDistance
from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import block_scores, compare_sets
from afv_metric.fisher.statistics import collect_statistics

torchmetrics = pytest.importorskip("torchmetrics")
from afv_metric.torchmetrics import AdversarialFisherDistance, FisherSetDistance  # noqa: E402


def _pairs(count=10):
    return make_images(count, seed=1).float(), make_images(count, seed=2).float()


def _feed(metric, first, second, sizes):
    for x, y in zip(first.split(sizes), second.split(sizes), strict=True):
        metric.update(x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_updates_of_any_size_give_the_distance_of_all(bundle, reduction):
    first, second = _pairs()
    expected = AFVDistance(bundle, reduction=reduction)(first, second)
    metric = AdversarialFisherDistance(bundle, reduction=reduction)
    for _ in range(2):
        _feed(metric, first, second, [1, 7, 2])
        torch.testing.assert_close(metric.compute(), expected)
        for same in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):
            torch.testing.assert_close(same.compute(), expected)
        metric.reset()
    assert metric.state_dict() == {}
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (False, True, False)
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == (
        0,
        None if reduction == "sum" else metric.plot_upper_bound,
    )


def test_the_value_of_a_batch_is_differentiable_and_the_state_holds_no_graph(bundle):
    first, second = _pairs(4)
    metric = AdversarialFisherDistance(bundle)
    first = first.requires_grad_()
    value = metric(first, second)
    (gradient,) = torch.autograd.grad(value, first)
    (expected,) = torch.autograd.grad(AFVDistance(bundle)(first, second).mean(), first)
    torch.testing.assert_close(gradient, expected)
    metric(first, second)
    assert not metric.total.requires_grad


def test_the_mean_keeps_two_numbers_and_refuses_what_is_no_reduction(bundle):
    metric = AdversarialFisherDistance(bundle)
    _feed(metric, *_pairs(), 2)
    assert sum(getattr(metric, name).numel() for name in metric._defaults) == 2
    with pytest.raises(ValueError, match="got \"?'?median"):
        AdversarialFisherDistance(bundle, reduction="median")


def test_in_a_collection_and_a_tracker(bundle):
    first, second = _pairs(4)
    lpips_like = {"afv": AdversarialFisherDistance(bundle), "local": AdversarialFisherDistance(bundle, form="local")}
    collection = torchmetrics.MetricCollection({**lpips_like, "mse": torchmetrics.MeanSquaredError()})
    tracker = torchmetrics.wrappers.MetricTracker(collection, maximize=None)
    for moved in (second, (first + second) / 2):
        tracker.increment()
        tracker.update(first, moved)
    best = tracker.best_metric()
    assert best["afv"] == pytest.approx(float(AFVDistance(bundle)(first, (first + second) / 2).mean()), rel=1e-5)
    assert best["local"] < float(AFVDistance(bundle, form="local")(first, second).mean())


def test_a_plot_has_the_bounds_of_the_distance(bundle):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    metric = AdversarialFisherDistance(bundle)
    metric.update(*_pairs(2))
    _, axes = metric.plot()
    low, high = axes.get_ylim()
    assert low < 0.01 < metric.distance.score_range[1] < high
    pyplot.close("all")


def test_sets_are_at_the_distance_of_compare_sets(bundle):
    real, fake = make_images(6, seed=1).float(), make_images(5, seed=2).float() * 0.7
    engine = FisherEngine(bundle.discriminator, bundle.output)
    blocks = [block_scores(engine, [[image[None]] for image in images]) for images in (real, fake)]
    found = compare_sets(*blocks, bundle.statistics, bundle.epsilon)
    for corrected, expected in ((False, found.distance), (True, found.corrected)):
        metric = FisherSetDistance(bundle, corrected=corrected)
        sizes = sum(getattr(metric, name).numel() for name in metric._defaults)
        for images, real_ones in ((real[:4], True), (fake, False), (real[4:], True)):
            metric.update(images, real=real_ones)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-4)
        assert sum(getattr(metric, name).numel() for name in metric._defaults) == sizes
        metric.reset()
        metric.update(real[:1], real=True)
        with pytest.raises(RuntimeError, match="got 1 real and 0 fake"):
            metric.compute()


def test_images_of_one_channel():
    discriminator = make_discriminator(channels=1)
    images = [make_images(6, seed=seed)[:, :1] for seed in (1, 2)]
    statistics = collect_statistics(FisherEngine(discriminator), images)
    metric = FisherSetDistance(Bundle("grey", discriminator, None, statistics), corrected=False)
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    vectors = [metric.distance.score_vectors(some).mean(0) for some in images]
    assert float(metric.compute()) == pytest.approx(float((vectors[0] - vectors[1]).square().mean()), rel=1e-4)


def test_two_samples_of_one_distribution_are_at_zero_on_average(bundle):
    metric, values = FisherSetDistance(bundle), []
    for seed in range(20):
        metric.reset()
        metric.update(make_images(6, seed=seed).float(), real=True)
        metric.update(make_images(6, seed=100 + seed).float(), real=False)
        values.append(metric.compute())
    found = torch.stack(values)
    assert found.min() < 0 < found.max()
    assert found.mean().abs() < 3 * found.std() / 20**0.5


def _in_two(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    first, second = _pairs()
    metrics = [AdversarialFisherDistance(TINY_BUNDLE, reduction=kind) for kind in ("mean", "none")]
    share = slice(0, 7) if rank == 0 else slice(7, None)
    for metric in metrics:
        _feed(metric, first[share], second[share], 4)
    sets = FisherSetDistance(TINY_BUNDLE)
    sets.update(first[share], real=True)
    sets.update(second[share], real=False)
    found = [metric.compute().tolist() for metric in (*metrics, sets)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_know_what_one_does(bundle, tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_in_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = _pairs()
    sets = FisherSetDistance(bundle)
    sets.update(first, real=True)
    sets.update(second, real=False)
    distances = AFVDistance(bundle)(first, second)
    for rank in range(2):
        mean, each, of_sets = json.loads((tmp_path / f"{rank}.json").read_text())
        assert mean == pytest.approx(float(distances.mean()), rel=1e-5)
        assert each == pytest.approx(distances.tolist(), rel=1e-5)
        assert of_sets == pytest.approx(float(sets.compute()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*:UserWarning:lightning.*")
def test_lightning_trains_on_the_distance_and_logs_the_metric(bundle, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.image = torch.nn.Parameter(torch.full((1, 3, 32, 32), -0.5))
            self.loss = AFVDistance(bundle, reduction="mean", pooling=2)
            self.watched = AdversarialFisherDistance(bundle)

        def training_step(self, target, index):
            loss = self.loss(self.image, target)
            self.watched(self.image.detach(), target)
            self.log("afv", self.watched, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam([self.image], 0.05)

    target = make_images(1).float()[0]
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    model = Model()
    start = float(AFVDistance(bundle)(model.image.detach(), target))
    trainer.fit(model, torch.utils.data.DataLoader([target] * 6, batch_size=2))
    found = float(trainer.callback_metrics["afv"])
    assert found < start
    assert list(model.state_dict()) == ["image"]
