"""This process among those of a run."""

import ctypes
import gc
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState


def process_state() -> PartialState:
    """Accelerate's state of this process, set up for a CPU group (gloo) where there is no accelerator.

    On a CPU accelerate does not join ranks by itself, so the group is set up here. Ranks wait for each other up to a
    day, because the first one tokenises alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


def leave_ranks() -> None:
    """End this process's part in the group, after its last collective; nothing where there is none.

    A group that is left to the interpreter's end can abort the process there, although its work is done.
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


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step; nothing on other C libraries.

    By default it returns every large tensor to the kernel at once, which zeroes the same pages again a moment later: on
    two cores and 135 million weights 17 % of a training step. **Source**: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large tensor
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
        mallopt(-2, 256 << 20)  # M_TOP_PAD, in bytes: it grows in large pieces
