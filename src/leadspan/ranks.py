"""This process of a run: its rank in a distributed run, its device, and its memory."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState

from leadspan.costs.settings import Device, recognise
from leadspan.errors import RunError

MemorySource = Literal["cuda allocator", "process resident set"]
_STATUS = Path("/proc/self/status")
# Parameters of mallopt, from glibc's malloc.h.
_MMAP_MAX = -4
"""How many tensors may have a mapping of their own."""
_TRIM_THRESHOLD = -1
"""Free bytes at the end of the heap from which on it shrinks; -1: never."""
_TOP_PAD = -2
"""Bytes that the heap grows by at least."""


def process_state() -> PartialState:
    """Accelerate's state of this process, set up for a CPU group (gloo) where there is no accelerator with float64.

    Sums over a run and draws of tokens are in float64, which Apple's GPUs (MPS) lack. On a CPU accelerate does not join
    ranks by itself, so the group is set up here. Ranks wait for each other up to a day, because the first one tokenises
    alone.

    Raises:
        RunError: The environment announces several ranks (`WORLD_SIZE`, `RANK`, ...) and lacks what joins them.
    """
    try:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return PartialState(cpu=accelerator is None or accelerator.type == "mps", timeout=timedelta(days=1))
    except ValueError as error:
        names = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
        given = " ".join(f"{name}={os.environ[name]}" for name in names)
        raise RunError(
            f"environment variables of a run on several ranks cannot be used ({given}): {error}; start it with "
            "torchrun, which sets all of them, or unset them"
        ) from None


def leave_ranks() -> None:
    """Leave the process group, after the last collective; does nothing where there is no group.

    A group that is still open when the interpreter ends can abort the process, although its work is done.
    **Source**: PyTorch, `torch.distributed`, "Shutdown".
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # sharded weights hold the group
        dist.destroy_process_group()


def process_device() -> torch.device:
    """The device this process trains on."""
    # Accelerate binds a rank to one device; asking torch for "cuda" would give device 0 on every rank.
    device = process_state().device
    assert device is not None, "accelerate sets it with the state"
    return device


@contextlib.contextmanager
def freed_memory_reused() -> Iterator[None]:
    """Let glibc keep what a training step frees for the next one, and return it all in the end; no-op elsewhere.

    By default it returns every large tensor to the kernel at once, which zeroes the same pages again a moment later: on
    two cores and 135 million weights 17 % of a training step. **Source**: mallopt(3), malloc_trim(3).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_TOP_PAD, 256 << 20)  # fewer calls to the kernel while the heap grows to its size
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, 65536)  # glibc's defaults
        library.mallopt(_TRIM_THRESHOLD, 128 << 10)
        library.mallopt(_TOP_PAD, 0)
        gc.collect()  # models hold themselves in cycles
        library.malloc_trim(0)


class PeakMemory:
    """Peak memory since construction.

    On CUDA it is the allocator's peak on the current device, everything counted. On the CPU it is the growth of the
    process's peak resident set, so it is only meaningful in a process that has not held more before.
    """

    def __init__(self) -> None:
        self.device = device = process_device()
        self.source: MemorySource = "cuda allocator" if device.type == "cuda" else "process resident set"
        # Interpreter and libraries do not belong to the run: only growth from here on counts.
        self._before = psutil.Process().memory_info().rss
        if _STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if _STATUS.exists():
            # VmHWM can be reset (clear_refs above); `ru_maxrss` cannot, and holds the peak of the whole process.
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            peak = int(line.split()[1]) * 1024
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return max(0, peak - self._before)


def peak_flops(device: torch.device, num_ranks: int, stated: Device | None) -> float | None:
    """Peak operations per second of all ranks' devices, as stated or by the name of the GPU; None where unknown."""
    figures = stated
    if figures is None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures = recognise(properties.name, properties.total_memory)
    return None if figures is None else figures.peak_flops * num_ranks


def device_name(device: torch.device, num_ranks: int) -> str:
    """Name of the training device and the number of ranks."""
    if device.type == "cuda":
        return f"{num_ranks} x {torch.cuda.get_device_name(device)}"
    return f"{num_ranks} x {device.type} ({torch.get_num_threads()} threads)"
