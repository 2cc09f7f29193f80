"""Graphs of the distance for other sizes than those that they were made with, or for none."""

import pytest
import torch
from conftest import make_images

from afv_metric import AFVDistance
from afv_metric.cli import main
from afv_metric.onnx import export_onnx

SIZES = [(2, 64, 64), (1, 61, 61), (3, 100, 37), (1, 32, 32)]
FORMS = pytest.mark.parametrize("form", ["activation", "local"])
CAN_EXPORT = pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 refuses to export this")


def _pair(count, height, width):
    return [make_images(count, height, width, seed).float() for seed in (1, 2)]


@pytest.mark.slow
@CAN_EXPORT
@FORMS
def test_an_exported_program_is_right_at_other_sizes(bundle, form):
    metric = AFVDistance(bundle, form=form)
    any_size = {0: torch.export.Dim("n", max=64), 2: torch.export.Dim("h", min=32), 3: torch.export.Dim("w", min=32)}
    program = torch.export.export(metric, tuple(_pair(2, 64, 64)), dynamic_shapes=(any_size, any_size)).module()
    for size in SIZES:
        first, second = _pair(*size)
        torch.testing.assert_close(program(first, second), metric(first, second), rtol=1e-4, atol=1e-6)
    assert program(first, first) == 0
    moving = first.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(program(moving, second).sum(), moving)
    (expected,) = torch.autograd.grad(metric(moving, second).sum(), moving)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


@CAN_EXPORT
@pytest.mark.parametrize("form", ["activation", "fisher"])
def test_a_program_of_one_size_is_right_there_and_refuses_others(bundle, form):
    metric = AFVDistance(bundle, form=form)
    program = torch.export.export(metric, tuple(_pair(2, 64, 64))).module()
    torch.testing.assert_close(program(*_pair(2, 64, 64)), metric(*_pair(2, 64, 64)), rtol=1e-4, atol=1e-6)
    with pytest.raises((AssertionError, RuntimeError), match="64"):
        program(*_pair(2, 61, 61))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_trace_is_refused(bundle):
    with pytest.raises(RuntimeError, match=r"use torch\.export"):
        torch.jit.trace(AFVDistance(bundle), tuple(_pair(1, 64, 64)))


@pytest.mark.slow
@CAN_EXPORT
@pytest.mark.parametrize(("form", "size"), [("activation", None), ("activation", (61, 64)), ("local", (32, 32))])
def test_onnxruntime_gives_the_distance(bundle, form, size, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    metric = AFVDistance(bundle, form=form)
    export_onnx(metric, tmp_path / "afv.onnx", size=size)
    session = runtime.InferenceSession(tmp_path / "afv.onnx")

    def run(first, second):
        return torch.from_numpy(session.run(["distance"], {"img0": first.numpy(), "img1": second.numpy()})[0])

    for shape in [(count, *size) for count in (1, 3)] if size else SIZES:
        first, second = _pair(*shape)
        torch.testing.assert_close(run(first, second), metric(first, second), rtol=1e-4, atol=1e-6)
    assert run(first, first)[0] == 0
    if size:
        with pytest.raises(Exception, match=f"Expected: {size[0]}"):
            run(*_pair(1, 64, 64))


@pytest.mark.slow
@CAN_EXPORT
def test_the_command_writes_the_model_of_a_bundle(tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", "tiny-imagenet-v8", "--onnx", str(tmp_path / "afv.onnx")]) == 0
    session = runtime.InferenceSession(tmp_path / "afv.onnx")
    first, second = _pair(2, 61, 45)
    found = session.run(None, {"img0": first.numpy(), "img1": second.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), AFVDistance()(first, second), rtol=1e-4, atol=1e-6)
    capsys.readouterr()
    assert main(["export", "tiny-imagenet-v8", "--onnx", str(tmp_path / "f.onnx"), "--form", "fisher"]) == 2
    assert "activation and local have" in capsys.readouterr().err
    assert main(["export", "run"]) == 2
    assert "--out" in capsys.readouterr().err
    assert not (tmp_path / "f.onnx").exists()
