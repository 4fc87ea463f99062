"""Reads the allocator and the energy counter."""

import logging
import resource
import sys
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

logger = logging.getLogger(__name__)

MemorySource = Literal["cuda allocator", "process resident set"]
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory since construction.

    On CUDA it is the allocator's peak on the current device, everything counted. On the CPU it is the growth of the
    process's peak resident set, so it is only meaningful in a process that has not held more before.
    """

    def __init__(self, device: torch.device):
        self.device = device
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

    @property
    def source(self) -> MemorySource:
        """What is measured."""
        return "cuda allocator" if self.device.type == "cuda" else "process resident set"


class EnergyCounter:
    """NVML's energy counter of one GPU, in joules since the driver was loaded (Volta and later).

    Source: NVML API reference, `nvmlDeviceGetTotalEnergyConsumption`, millijoules.
    """

    def __init__(self, nvml: Any, handle: Any):
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, device: torch.device) -> "EnergyCounter | None":
        """The counter of a CUDA device; None for another device, without `nvidia-ml-py`, or where NVML has none."""
        if device.type != "cuda":
            return None
        try:
            import pynvml  # pyright: ignore[reportMissingImports]  # the extra `nvml`
        except ImportError:
            logger.info("energy is not measured: nvidia-ml-py is not installed (pip install 'leadspan[nvml]')")
            return None
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid  # visible devices may be numbered anew, ids are not
            counter = cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            counter.read()  # raises here, where the GPU has no counter, and not in the middle of a run
        except pynvml.NVMLError as error:
            logger.info("energy is not measured: NVML says %s", error)
            return None
        return counter

    def read(self) -> float:
        """Joules."""
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
