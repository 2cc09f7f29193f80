import json
import threading

import numpy as np
import pytest
import torch

from afv_metric.runtime import (
    computes_bfloat16,
    find_device,
    parallel_map,
    read_machines,
    read_versions,
    record_machine,
)


def test_versions_are_those_of_the_packages():
    versions = read_versions()
    assert versions["numpy"] == np.__version__
    assert {"afv_metric", "python", "torch", "scipy"} <= set(versions)


def test_devices_that_cannot_be_used_are_refused():
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    assert find_device("cpu") == torch.device("cpu")
    for name in ("abacus", "cuda:99", "cpu:x"):
        with pytest.raises(ValueError, match=f"cannot use the device '{name}'"):
            find_device(name)


def test_imitated_bfloat16_is_told_from_computed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not computes_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert computes_bfloat16(torch.device("cuda"))
    assert computes_bfloat16(torch.device("cpu")) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_bfloat16(torch.device("cpu"))


def test_machines_of_a_run(tmp_path, monkeypatch):
    record_machine(tmp_path)
    record_machine(tmp_path)
    monkeypatch.setattr("afv_metric.runtime._processor", lambda: "Z80")
    record_machine(tmp_path, processes=2)
    first, second = json.loads((tmp_path / "machines.json").read_text())
    assert second["processor"] == "Z80"
    assert (first["processes"], second["processes"]) == (1, 2)
    assert first.keys() == {"processor", "instructions", "threads", "processes", "torch"}  # no name of the machine


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_file_that_is_no_record_of_machines_is_named(tmp_path):
    assert read_machines(tmp_path) == []
    (tmp_path / "machines.json").write_text('{"cut')
    with pytest.raises(ValueError, match=r"machines\.json is no record of machines"):
        record_machine(tmp_path)
    assert (tmp_path / "machines.json").read_text() == '{"cut'


def test_every_core_has_a_batch_and_results_come_in_order(three_threads):
    together = threading.Barrier(3, timeout=30)

    def compute(batch):
        together.wait()  # passes only when three batches are worked on at the same time
        return batch**2, torch.get_num_threads()

    results = list(parallel_map(compute, range(6), "cpu"))
    assert results == [(batch, (batch**2, 1)) for batch in range(6)]
    assert torch.get_num_threads() == 3


def test_what_must_be_alone_has_all_threads_and_one_batch(three_threads):
    busy = threading.Lock()

    def compute(batch):
        assert busy.acquire(blocking=False)
        busy.release()
        return torch.get_num_threads()

    assert [threads for _, threads in parallel_map(compute, range(5), "cpu", alone=True)] == [3] * 5


def test_an_error_reaches_the_caller_and_threads_are_given_back(three_threads):
    def compute(batch):
        if batch == 2:
            raise ValueError("the third")
        return batch

    with pytest.raises(ValueError, match="the third"):
        list(parallel_map(compute, range(100), "cpu"))
    assert torch.get_num_threads() == 3
