import argparse

import numpy as np
import pytest
import torch

from afv_metric.environment import parse_device, read_versions


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
