"""Two processes on this machine, joined by gloo as torchrun joins them."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from afv_metric.distributed import any_rank, average, rank_and_world_size, sync_batch_norm
from afv_metric.train.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from afv_metric.train.loop import train


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _start_two(code, *arguments):
    """The code in two processes; it finds what torchrun would give it in the environment."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


_NORMALISE = """
import torch
from torch import nn
from afv_metric.distributed import average, init_distributed, rank_and_world_size, any_rank, sync_batch_norm
with init_distributed("cpu"):
    rank, count = rank_and_world_size()
    torch.manual_seed(0)
    maps = torch.randn(6, 3, 4, 4, dtype=torch.float64) * 2 + 1
    norm = nn.BatchNorm2d(3).double()
    sync_batch_norm(norm)
    part = maps.chunk(2)[rank].requires_grad_()
    out = norm(part)
    out.sin().mean().backward()
    gradients = [weight.grad for weight in norm.parameters()]
    average(gradients)
    assert any_rank(rank == 1, torch.device("cpu")) and not any_rank(False, torch.device("cpu"))
    result = [norm.running_mean, norm.running_var, *gradients, out, part.grad / count]
    print([value.flatten().tolist() for value in result])
"""


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch():
    answers = [process.communicate(timeout=120) for process in _start_two(_NORMALISE)]
    assert all(out for out, _ in answers), answers
    found = [json.loads(out) for out, _ in answers]
    torch.manual_seed(0)
    maps = (torch.randn(6, 3, 4, 4, dtype=torch.float64) * 2 + 1).requires_grad_()
    norm = nn.BatchNorm2d(3).double()
    out = norm(maps)
    out.sin().mean().backward()
    expected = [norm.running_mean, norm.running_var, *(weight.grad for weight in norm.parameters())]
    for index, value in enumerate(expected):
        for of_rank in found:
            torch.testing.assert_close(torch.tensor(of_rank[index]).double(), value.double(), rtol=1e-5, atol=1e-6)
    for index, value in ((4, out), (5, maps.grad)):
        both = torch.cat([torch.tensor(of_rank[index]) for of_rank in found]).double()
        torch.testing.assert_close(both, value.detach().flatten().double(), rtol=1e-5, atol=1e-6)


def test_a_single_process_meets_nobody():
    assert rank_and_world_size() == (0, 1)
    values = torch.arange(3.0)
    average([values])
    assert values.tolist() == [0.0, 1.0, 2.0]
    assert any_rank(True, torch.device("cpu"))
    norm = nn.BatchNorm2d(2)
    sync_batch_norm(norm)
    assert type(norm) is nn.BatchNorm2d


_TRAIN = """
import sys, torch
from afv_metric.train.__main__ import main
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""


def _arguments(recipe, images, out):
    settings = [f"{name}={value}" for name, value in dataclasses.asdict(recipe).items()]
    return ["imagenet", "--data", images, "--out", out, "--quiet", "--set", *settings]


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_whole_batch(recipe, images, tmp_path):
    # What each process draws by itself is left out.
    recipe = dataclasses.replace(recipe, augmentation="none", negatives=0.0, tolerance=0.0)
    recipe = dataclasses.replace(recipe, iterations=4, log_interval=1, r1=0.1)
    train(recipe, images, tmp_path / "one", quiet=True)
    answers = [
        job.communicate(timeout=240) for job in _start_two(_TRAIN, *_arguments(recipe, images, tmp_path / "two"))
    ]
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "stats.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert len(two) == 4, answers
    for line, other in zip(one, two, strict=True):
        for name in ("loss_d", "loss_g", "real", "fake"):
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), (name, line["iteration"])
    saved = [load_checkpoint(latest_checkpoint(tmp_path / run)) for run in ("one", "two")]
    for name, value in saved[0]["averaged_discriminator"].items():
        torch.testing.assert_close(saved[1]["averaged_discriminator"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(recipe, images, tmp_path):
    recipe = dataclasses.replace(recipe, batch_size=7)
    for job in _start_two(_TRAIN, *_arguments(recipe, images, tmp_path)):
        assert "a batch of 7 cannot be shared equally by 2 processes" in job.communicate(timeout=120)[1]
        assert job.returncode == 2


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_job(recipe, images, tmp_path):
    recipe = dataclasses.replace(recipe, iterations=100_000, checkpoint_interval=2, monitor_interval=10**6)
    jobs = _start_two(_TRAIN, *_arguments(recipe, images, tmp_path))
    began = time.monotonic()
    while not checkpoints(tmp_path):
        assert time.monotonic() - began < 240
        assert jobs[0].poll() is None, jobs[0].communicate()
        time.sleep(0.1)
    jobs[1].send_signal(signal.SIGKILL)
    jobs[1].communicate()
    try:
        error = jobs[0].communicate(timeout=120)[1]
    finally:
        jobs[0].kill()
    assert jobs[0].returncode == 2, error
    assert "another process" in error
    path = latest_checkpoint(tmp_path)
    assert path is not None
    assert load_checkpoint(path)["iteration"] >= 2
