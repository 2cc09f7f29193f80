"""No road that a surrounding model takes over its modules changes the metric: its distances are the same to the bit."""

import copy
import pickle
import sys

import pytest
import torch
from conftest import TINY_BUNDLE, make_images
from torch import distributed, multiprocessing, nn
from torch.nn.utils import parametrizations, parametrize, prune

from afv_metric import AFVDistance

FORMS = ("fisher", "local", "activation")
METRICS = pytest.mark.parametrize("form", FORMS)


class Model(nn.Module):
    """A model that trains by the metric."""

    def __init__(self, metric: AFVDistance) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
        self.metric = metric

    def forward(self, first, second):
        return self.metric(self.layer(first), second)


def _pair():
    return make_images(2, 32, 40, 1).float(), make_images(2, 32, 40, 2).float()


def _everywhere(model, change):
    """Apply a change to every module that has a weight."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            change(module)


class _Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def _average(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    return averaged.module


def _materialise(model):
    state = model.state_dict()
    model = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    model.load_state_dict(state, strict=True)
    return model


ROADS = {
    "apply": lambda model: model.apply(lambda module: [p.data.fill_(0.1) for p in module.parameters(recurse=False)]),
    "reset_parameters": lambda model: [
        module.reset_parameters() for module in model.modules() if hasattr(module, "reset_parameters")
    ],
    "spectral_norm": lambda model: _everywhere(model, parametrizations.spectral_norm),
    "parametrize": lambda model: _everywhere(
        model, lambda module: parametrize.register_parametrization(module, "weight", _Halve())
    ),
    "prune": lambda model: _everywhere(model, lambda module: prune.random_unstructured(module, "weight", 0.5)),
    "buffers": lambda model: [buffer.fill_(0) for buffer in model.buffers()],
    "half and back": lambda model: model.half().float(),
    "double and back": lambda model: model.double().float(),
    "train": lambda model: model.train(),
    "optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1).step(),
    "meta, to_empty, strict load": _materialise,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "average of weights": _average,
    "replicate": lambda model: nn.Module._replicate_for_data_parallel(model.metric),
}


@METRICS
@pytest.mark.parametrize("road", ROADS)
def test_nothing_changes_the_metric(form, road):
    first, second = _pair()
    model = Model(AFVDistance(TINY_BUNDLE, form=form))
    before = model.metric(first, second)
    result = ROADS[road](model)
    after = result if isinstance(result, nn.Module) else model
    metric = after.metric if isinstance(after, Model) else after
    assert torch.equal(metric(first, second), before)
    assert torch.equal(model.metric(first, second), before)
    assert model.metric.bundle_hash == metric.bundle_hash


@METRICS
def test_it_serves_a_loss_wherever_it_was_built(form):
    first, second = _pair()
    expected = AFVDistance(TINY_BUNDLE, form=form)(first, second)
    with torch.device("meta"):
        on_meta = AFVDistance(TINY_BUNDLE, form=form)
    with torch.inference_mode():
        inferred = AFVDistance(TINY_BUNDLE, form=form)
        inferred(first, second)  # copies that are made here serve a loss as well
    for metric in (on_meta, inferred):
        moving = first.clone().requires_grad_()
        value = metric(moving, second)
        value.sum().backward()
        assert torch.equal(value, expected)
        assert moving.grad.any()


@METRICS
def test_weights_in_a_changed_copy_of_the_bundle_are_not_the_metrics(form, bundle):
    first, second = _pair()
    own = copy.deepcopy(bundle)
    metric = AFVDistance(own, form=form)
    before = metric(first, second)
    with torch.no_grad():
        for parameter in own.discriminator.parameters():
            parameter.zero_()
        for layer in own.statistics.layers:
            for value in layer:
                value.zero_()
    assert torch.equal(metric(first, second), before)


@METRICS
def test_checkpointing_runs_the_model_twice_and_keeps_the_gradient(form):
    first, second = _pair()
    model, calls = Model(AFVDistance(TINY_BUNDLE, form=form)), []
    model.layer.register_forward_hook(lambda *_: calls.append(1))
    moving = first.clone().requires_grad_()
    expected = torch.autograd.grad(model(moving, second).sum(), moving)[0]
    calls.clear()
    value = torch.utils.checkpoint.checkpoint(model, moving, second, use_reentrant=False).sum()
    (gradient,) = torch.autograd.grad(value, moving)
    assert len(calls) == 2
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)


def _join(rank, folder, sharded, results):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{sharded}", rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        model = Model(AFVDistance(TINY_BUNDLE))
        first, second = _pair()
        before = model.metric(first, second)
        if sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(model, mesh=distributed.device_mesh.init_device_mesh("cpu", (2,)))
            wrapped = model
        else:
            wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            wrapped(first, second).sum().backward()
        results.put(bool(torch.equal(model.metric(first, second), before)))
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes meet by gloo and a file")
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_leave_it_alone(tmp_path, sharded):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_join, args=(rank, tmp_path, sharded, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [True, True]


def test_a_kept_loss_keeps_nothing_of_the_backward_pass():
    metric, second = AFVDistance(TINY_BUNDLE), _pair()[1]
    moving = _pair()[0].requires_grad_()
    kept = metric(moving, second)
    kept.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):  # what it had saved is freed
        kept.sum().backward()
