import threading

import pytest
import torch

from afv_metric.threads import compute_batches


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_every_core_has_a_batch_and_results_come_in_order(three_threads):
    together = threading.Barrier(3, timeout=30)

    def compute(batch):
        together.wait()  # passes only when three batches are worked on at the same time
        return batch**2, torch.get_num_threads()

    results = list(compute_batches(compute, range(6), "cpu"))
    assert results == [(batch, (batch**2, 1)) for batch in range(6)]
    assert torch.get_num_threads() == 3


def test_what_must_be_alone_has_all_threads_and_one_batch(three_threads):
    busy = threading.Lock()

    def compute(batch):
        assert busy.acquire(blocking=False)
        busy.release()
        return torch.get_num_threads()

    assert [threads for _, threads in compute_batches(compute, range(5), "cpu", alone=True)] == [3] * 5


def test_an_error_reaches_the_caller_and_threads_are_given_back(three_threads):
    def compute(batch):
        if batch == 2:
            raise ValueError("the third")
        return batch

    with pytest.raises(ValueError, match="the third"):
        list(compute_batches(compute, range(100), "cpu"))
    assert torch.get_num_threads() == 3
