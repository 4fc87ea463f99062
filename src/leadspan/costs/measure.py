"""Reads the clock and the allocator: peak memory of a stretch of work."""

import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory since construction.

    On CUDA it is the allocator's peak on the current device, everything counted. On the CPU it is the growth of the
    process's peak resident set, so it is only meaningful in a process that has not held more before.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._before = psutil.Process().memory_info().rss
        if _STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, _peak_resident_bytes() - self._before)

    @property
    def source(self) -> Literal["cuda allocator", "process resident set"]:
        """What is measured."""
        return "cuda allocator" if self.device.type == "cuda" else "process resident set"


def _peak_resident_bytes() -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit  # since the process began
