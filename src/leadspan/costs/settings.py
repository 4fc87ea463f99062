"""Settings of the prediction: the device, its price, and how ranks share the model.

Peaks are for dense bfloat16 matrix products with float32 accumulation; vendors often print twice as much, for sparse
matrices. Memory is the advertised number in units of 10^9 bytes; the cards have about as many GiB, and the difference
of up to 7 % allows for the driver's context, the allocator's fragmentation and the workspaces of kernels.

Sources, all NVIDIA's: datasheets of A100, H100, H200, L4, L40S, A10, A10G and HGX B200; whitepapers of the Ampere GA102
(RTX 3090, RTX A6000), Ada (RTX 4090) and Blackwell (RTX 5090) architectures, rows "Peak BF16 Tensor TFLOPS with FP32
Accumulate".
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from leadspan.costs.memory import Sharding
from leadspan.faults import Rule
from leadspan.settings import Settings


class Device(Settings):
    """A device with its figures."""

    name: str = "custom device"
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


_OTHER_CARDS = {"ti", "d", "laptop"}  # words that make another card of a name: RTX 3090 Ti, RTX 4090 D
_GPUS = {
    "a100-40gb": ("NVIDIA A100 40GB", 312, 40),
    "a100-80gb": ("NVIDIA A100 80GB", 312, 80),
    "h100-sxm": ("NVIDIA H100 SXM", 989, 80),
    "h100-pcie": ("NVIDIA H100 PCIe", 756, 80),
    "h100-nvl": ("NVIDIA H100 NVL", 835, 94),
    "h200": ("NVIDIA H200", 989, 141),
    "h200-nvl": ("NVIDIA H200 NVL", 835, 141),
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


def recognise(name: str, memory_bytes: int) -> Device | None:
    """The preset for a device name of CUDA; the memory distinguishes variants of one name.

    >>> recognise("NVIDIA A100-SXM4-80GB", 85_000_000_000).name
    'NVIDIA A100 80GB'
    """
    words = set(name.lower().replace("-", " ").split())
    if words & _OTHER_CARDS:
        return None
    # The entry with the most words wins: "h100 pcie" before "h100".
    best, most = None, 0
    for key, device in DEVICES.items():
        key_words = set(key.split("-")) - {"40gb", "80gb", "sxm"}  # memory decides; NVIDIA leaves SXM out of some names
        # 15 %: CUDA reports a few per cent more or less than advertised; variants of one name differ by half.
        if key_words <= words and abs(memory_bytes / device.memory_bytes - 1) < 0.15 and len(key_words) > most:
            best, most = device, len(key_words)
    return best


class PlanSettings(Settings):
    """The machine that `leadspan plan` predicts for; does not change training."""

    device: str | Device | None = None
    """A preset (`h100-sxm`, `a100-80gb`, `rtx-4090`, ...) or own figures, `{peak_tflops: 100, memory_gb: 24}`."""
    utilisation: float | None = Field(default=None, gt=0, le=1)
    """Share of the device's peak that training is expected to reach; predicts the time where nothing was measured."""
    calibration: Path | None = None
    """File of a measured calibration, which `leadspan plan --calibrate` writes."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Price of one device for an hour, in any currency; 0 is a price."""
    currency: str = "$"
    """Currency symbol."""
    num_ranks: int = Field(default=1, ge=1)
    """Devices of the planned run."""
    sharding: Sharding | None = None
    """What the ranks share; with one rank nothing (`none`), with several `ddp` when absent."""
    bandwidth_gb: float | None = Field(default=None, gt=0)
    """Bandwidth from one of several devices to the others, 10^9 bytes per second, from which the number of devices is
    found at which the network limits a step: about 450 for the NVLink of an H100, 50 for InfiniBand of 400 Gbit/s, 25
    for PCIe 4.0 x16."""
    break_point_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Time to search up to 400 training traces for the first answers from which the break point is predicted; traces
    not decided by then are left out and counted. 0 predicts no break point."""

    @field_validator("device", mode="before")
    @classmethod
    def _is_known(cls, device: Any) -> Any:
        name = str(device).lower()  # `4090` is a number in YAML
        if isinstance(device, str | int) and not isinstance(device, bool) and name not in DEVICES:
            near = [key for key in DEVICES if name and name in key]
            near = near or difflib.get_close_matches(name, DEVICES, n=1, cutoff=0.75)
            hint = f"did you mean {' or '.join(near)}? Else " if near else ""
            raise ValueError(
                f"no preset of this name; {hint}take one of {', '.join(DEVICES)}, "
                "or give {peak_tflops: ..., memory_gb: ...}"
            )
        return device

    def conflicts(self) -> Iterator[Rule]:
        """A utilisation needs a device, and several ranks need a sharding."""
        if self.utilisation is not None and self.device is None:
            yield ("utilisation", "device"), "utilisation is a share of a device's peak; give a device too"
        if self.sharding == "none" and self.num_ranks > 1:
            text = f"{self.num_ranks} ranks train one model together; set sharding: ddp or fsdp2"
            yield ("sharding", "num_ranks"), text

    @property
    def shared(self) -> Sharding:
        """How the ranks share the model; one rank shares nothing, whatever is set for several."""
        if self.num_ranks == 1:
            return "none"
        # `none` is set for one rank, and the run has been started with several.
        return "ddp" if self.sharding in (None, "none") else self.sharding

    def money(self, seconds: float | None) -> float | None:
        """Price of a time on all ranks; None without a time or a price."""
        if seconds is None or self.price_per_hour is None:
            return None
        return self.price_per_hour * self.num_ranks * seconds / 3600

    @property
    def found_device(self) -> Device | None:
        """The device's figures."""
        return DEVICES[self.device.lower()] if isinstance(self.device, str) else self.device
