"""The few places where the processes of one training job meet; with a single process all of it does nothing.

The two networks take turns and the gradient penalty differentiates twice, which ``DistributedDataParallel`` does not
follow. They are small, too: the gradients of a step, a few megabytes, are reduced at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce as differentiable_all_reduce

__all__ = [
    "LostProcessError", "any_rank", "average", "gather", "init_distributed", "rank_and_world_size", "share",
    "sync_batch_norm",
]  # fmt: skip

_Item = TypeVar("_Item")


class LostProcessError(RuntimeError):
    """Another process of the job has ended, so that this one cannot go on."""


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextlib.contextmanager
def init_distributed(device: str | torch.device) -> Iterator[torch.device]:
    """Join the job that ``torchrun`` has started, if any, and give the device of this process, for CUDA its own GPU.

    Raises:
        LostProcessError: If a process of the job died in the meantime.
    """
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Numbers that were taken to the CPU meet there. Nobody may give up while the first process decodes the images.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield device
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise LostProcessError(f"another process of the job has ended or cannot be reached: {error}") from error
        raise
    finally:
        distributed.destroy_process_group()


def share(items: Sequence[_Item]) -> list[_Item]:
    """The items of this process: neighbours among those that the first process has."""
    rank, count = rank_and_world_size()
    if count == 1:
        return list(items)
    known = [items]
    distributed.broadcast_object_list(known)
    (items,) = known
    return list(items[rank * len(items) // count : (rank + 1) * len(items) // count])


def gather(item: _Item) -> list[_Item]:
    """In the first process what each one has, in their order; nothing in the others."""
    rank, count = rank_and_world_size()
    if count == 1:
        return [item]
    items: list[Any] | None = None if rank else [None] * count
    distributed.gather_object(item, items)
    return items or []


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one device, in place, by their means over all processes."""
    _, count = rank_and_world_size()
    tensors = list(tensors)
    if count == 1 or not tensors:
        return
    joint = torch.cat([tensor.flatten().float() for tensor in tensors])
    distributed.all_reduce(joint)
    joint /= count
    for tensor, mean in zip(tensors, joint.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def any_rank(condition: bool, device: torch.device) -> bool:
    """Whether a condition holds in any process; all of them get the same answer, at the same place."""
    if rank_and_world_size()[1] == 1:
        return condition
    flag = torch.tensor(float(condition), device=device)
    distributed.all_reduce(flag)
    return bool(flag)


class _SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes on the CPU, where ``nn.SyncBatchNorm`` does not run."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)``."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = rank_and_world_size()[1]
        maps = input.to(self.weight.dtype)
        mean = differentiable_all_reduce(maps.mean((0, 2, 3)) / count)
        centred = maps - mean[:, None, None]
        variance = differentiable_all_reduce(centred.square().mean((0, 2, 3)) / count)
        with torch.no_grad():
            size = count * input.numel() / input.shape[1]
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * size / (size - 1), self.momentum or 0.0)
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt() * self.weight
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)


def sync_batch_norm(module: nn.Module) -> None:
    """Make every batch normalisation of a network one over the batches of all processes, in place."""
    if rank_and_world_size()[1] == 1:
        return
    if any(parameter.is_cuda for parameter in module.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = _SyncBatchNorm2d
