"""What commands run on: device, machine, threads, and the versions that numbers may depend on."""

from __future__ import annotations

import json
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from afv_metric.files import atomic_write

if TYPE_CHECKING:
    import torch

__all__ = ["computes_bfloat16", "find_device", "parallel_map", "read_versions", "record_machine"]

_MACHINES = "machines.json"
_MOST_AT_ONCE = 8  # batches computed in threads; each holds its maps
_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")
_PACKAGES = ("torchvision", "numpy", "scipy", "pillow", "lpips", "piq", "torchmetrics")


def find_device(name: str) -> torch.device:
    """Find a device and try it: ``auto`` is the best there is; one that cannot be used is a ValueError."""
    import torch  # only here, as --help needs none of it

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"cannot use the device {name!r}: {str(error).splitlines()[0]}") from error


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device computes convolutions in bfloat16, rather than imitate it at many times the cost of float32.

    Processors do from AVX-512 (x86) or the BF16 extension (Arm) on, GPUs of NVIDIA from Ampere on.
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def read_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on, as far as they are installed."""
    import torch

    import afv_metric

    # Only torch itself knows what it was built for.
    versions = {"afv_metric": afv_metric.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_machines(run: str | Path) -> list[dict[str, Any]]:
    """Read what :func:`record_machine` noted in a run, if anything."""
    path = Path(run) / _MACHINES
    if not path.is_file():
        return []
    try:
        return [dict(machine) for machine in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no record of machines ({error}); move it away") from error


def record_machine(run: str | Path, device: str | torch.device = "cpu", processes: int = 1) -> None:
    """Note in a run on what it computes: processor or GPU, threads and versions, but no name of the machine.

    A run that is resumed on another machine gets a second entry in ``machines.json``.
    """
    import torch

    device = torch.device(device)
    here: dict[str, Any] = {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if device.type == "cuda":
        here = {"processor": torch.cuda.get_device_name(device)}
    elif device.type != "cpu":
        here["device"] = device.type
    here |= {"threads": torch.get_num_threads(), "processes": processes, "torch": str(torch.__version__)}
    path = Path(run) / _MACHINES
    before = read_machines(run)
    if here not in before:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps([*before, here], indent=2) + "\n")


def _processor() -> str:
    """Model of the processor, as Linux knows it or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parallel_map(
    function: Callable[[_Batch], _Result], batches: Iterable[_Batch], device: str | torch.device, *, alone: bool = False
) -> Iterator[tuple[_Batch, _Result]]:
    """Apply a function to batches; on the CPU one batch per core, with the threads of torch shared out among them.

    The function is called in other threads, where gradients and autocast are as they are by default; ``alone`` means
    never twice at the same time. A few batches are taken ahead: an accelerator is given its next one before the results
    of the last are waited for. Every batch comes with its result, in order.
    """
    import torch

    threads = torch.get_num_threads()
    at_once = 1 if alone or torch.device(device).type != "cpu" else min(threads, _MOST_AT_ONCE)
    pending: deque[tuple[_Batch, Future[_Result]]] = deque()
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,)) as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(function, batch)))
                if len(pending) > at_once:
                    done, result = pending.popleft()
                    yield done, result.result()
            for done, result in pending:
                yield done, result.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
