"""This process as a rank of a distributed run."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState

# Parameters of mallopt, from glibc's malloc.h.
_MMAP_MAX = -4
"""How many tensors may have a mapping of their own."""
_TRIM_THRESHOLD = -1
"""Free bytes at the end of the heap from which on it shrinks; -1: never."""
_TOP_PAD = -2
"""Bytes that the heap grows by at least."""


def process_state() -> PartialState:
    """Accelerate's state of this process, set up for a CPU group (gloo) where there is no accelerator.

    On a CPU accelerate does not join ranks by itself, so the group is set up here. Ranks wait for each other up to a
    day, because the first one tokenises alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


def leave_ranks() -> None:
    """Leave the process group, after the last collective; does nothing where there is no group.

    A group that is still open when the interpreter ends can abort the process, although its work is done.
    **Source**: PyTorch, `torch.distributed`, "Shutdown".
    """
    gc.collect()  # sharded weights hold the group
    if dist.is_available() and dist.is_initialized():
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
