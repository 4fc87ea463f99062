"""Peak throughput and memory of common GPUs, and a device of the user's own figures.

Peaks are for dense bfloat16 matrix products with float32 accumulation; vendors often print twice as much, for sparse
matrices. Memory is the advertised number in units of 10^9 bytes; the cards have about as many GiB, and the difference
of up to 7 % allows for the driver's context, the allocator's fragmentation and the workspaces of kernels.

Sources, all NVIDIA's: datasheets of A100, H100, H200, L4, L40S, A10, A10G and HGX B200; whitepapers of the Ampere GA102
(RTX 3090, RTX A6000), Ada (RTX 4090) and Blackwell (RTX 5090) architectures, rows "Peak BF16 Tensor TFLOPS with FP32
Accumulate".
"""

import difflib

from pydantic import Field

from leadspan.errors import SettingsError
from leadspan.settings import Settings


class Device(Settings):
    """A device with its figures."""

    name: str = "own device"
    """Name of the device in tables."""
    peak_tflops: float = Field(gt=0)
    """Peak throughput in the precision of the run, 10^12 operations a second."""
    memory_gb: float = Field(gt=0)
    """Memory a run may take, 10^9 bytes."""
    bfloat16: bool = True
    """Whether it is a GPU with bfloat16, in which `training.precision: auto` then trains; false: it trains in float32,
    with the small chunks of logits of a CPU."""

    @property
    def memory_bytes(self) -> int:
        """Memory a run may take."""
        return round(self.memory_gb * 1e9)

    @property
    def peak_flops(self) -> float:
        """Operations a second."""
        return self.peak_tflops * 1e12


_GPUS = {
    "a100-40gb": ("NVIDIA A100 40GB", 312, 40),
    "a100-80gb": ("NVIDIA A100 80GB", 312, 80),
    "h100-sxm": ("NVIDIA H100 SXM", 989, 80),
    "h100-pcie": ("NVIDIA H100 PCIe", 756, 80),
    "h100-nvl": ("NVIDIA H100 NVL", 835, 94),
    "h200": ("NVIDIA H200", 989, 141),
    "b200": ("NVIDIA B200", 2250, 180),
    "l4": ("NVIDIA L4", 121, 24),
    "l40s": ("NVIDIA L40S", 362, 48),
    "a10": ("NVIDIA A10", 125, 24),
    "a10g": ("NVIDIA A10G", 70, 24),
    "a6000": ("NVIDIA RTX A6000", 155, 48),
    "rtx-3090": ("NVIDIA GeForce RTX 3090", 71, 24),
    "rtx-4090": ("NVIDIA GeForce RTX 4090", 165, 24),
    "rtx-5090": ("NVIDIA GeForce RTX 5090", 209.5, 32),
}
DEVICES = {
    key: Device(name=name, peak_tflops=peak_tflops, memory_gb=memory_gb)
    for key, (name, peak_tflops, memory_gb) in _GPUS.items()
}
"""Presets by the name a recipe gives."""


def find_device(device: str | Device) -> Device:
    """A preset by its name, or the device itself.

    Raises:
        SettingsError: There is no such preset.
    """
    if isinstance(device, Device):
        return device
    if device.lower() not in DEVICES:
        near = difflib.get_close_matches(device.lower(), DEVICES, n=1, cutoff=0.75)
        hint = f"did you mean {near[0]!r}? Else " if near else ""
        raise SettingsError(
            f"{device!r}: no preset of this name; {hint}take one of {', '.join(DEVICES)}, "
            "or give {peak_tflops: ..., memory_gb: ...}"
        )
    return DEVICES[device.lower()]


def recognise(name: str, memory_bytes: int) -> Device | None:
    """The preset for a device name of CUDA; the memory distinguishes variants of one name.

    >>> recognise("NVIDIA A100-SXM4-80GB", 85_000_000_000).name
    'NVIDIA A100 80GB'
    """
    words = set(name.lower().replace("-", " ").split())
    # The entry with the most words wins: "h100 pcie" before "h100".
    best, most = None, 0
    for key, device in DEVICES.items():
        key_words = set(key.split("-")) - {"40gb", "80gb", "sxm"}  # memory decides; NVIDIA leaves SXM out of some names
        # 15 %: CUDA reports a few per cent more or less than advertised; variants of one name differ by half.
        if key_words <= words and abs(memory_bytes / device.memory_bytes - 1) < 0.15 and len(key_words) > most:
            best, most = device, len(key_words)
    return best
