"""Memory as the allocators see it: bytes saved for backward, the peak of a stretch of work, the resident set."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 1 << 20


class SavedBytes:
    """What autograd saves for the backward pass, each storage once; weights are left out.

    Tensors of the shapes in `gradients` are counted apart: a loss that forms its gradients in the forward pass saves
    the gradient of a weight, which is no activation.
    """

    def __init__(self, weights: Iterable[torch.Tensor], gradients: Iterable[torch.Size] = ()):
        self._weights = {w.untyped_storage().data_ptr() for w in weights}
        self._gradient_shapes = set(gradients)
        self._found: dict[int, tuple[torch.Tensor, int]] = {}  # tensors are kept, so that no address is reused

    @contextmanager
    def watching(self) -> Iterator["SavedBytes"]:
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield self

    @property
    def activations(self) -> int:
        return sum(size for tensor, size in self._found.values() if tensor.shape not in self._gradient_shapes)

    @property
    def gradients(self) -> int:
        return sum(size for tensor, size in self._found.values() if tensor.shape in self._gradient_shapes)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._found[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor


def allocated(run: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Peak growth of allocated memory while `run` runs, and the growth left while its result is alive; in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = run()
        torch.cuda.synchronize(device)
        left = torch.cuda.memory_allocated(device) - before
        del kept
        return torch.cuda.max_memory_allocated(device) - before, left
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = run()
    changes = _allocations(trace)
    del kept
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak, level


def _allocations(trace: profile) -> list[int]:
    """Every allocation (positive) and release (negative) of the CPU allocator, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    found = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    return [e["args"]["Bytes"] for e in sorted(found, key=lambda e: e["ts"])]


def reset_peak_resident() -> int:
    """Forget the peak of this process's resident set (Linux); returns the present resident set in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_resident() -> int:
    """Highest resident set of this process since the last reset, in bytes (Linux)."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
