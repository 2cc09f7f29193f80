import argparse

import numpy as np
import pytest
import torch

from afv_metric.runtime import computes_bfloat16, parse_device, read_versions


def test_versions_are_those_of_the_packages():
    versions = read_versions()
    assert versions["numpy"] == np.__version__
    assert {"afv_metric", "python", "torch", "scipy"} <= set(versions)


def test_devices_that_cannot_be_used_are_refused():
    assert parse_device("auto").type in ("cpu", "cuda", "mps")
    assert parse_device("cpu") == torch.device("cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(argparse.ArgumentTypeError, match=name):
            parse_device(name)


def test_imitated_bfloat16_is_told_from_computed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not computes_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert computes_bfloat16(torch.device("cuda"))
    assert computes_bfloat16(torch.device("cpu")) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_bfloat16(torch.device("cpu"))
