"""Settings of the prediction: the device, its price, and how ranks share the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from leadspan.costs.devices import Device, find_device
from leadspan.errors import SettingsError
from leadspan.faults import Rule
from leadspan.settings import Settings


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
    sharding: Literal["none", "ddp", "fsdp2"] | None = None
    """What the ranks share; with one rank nothing (`none`), with several `ddp` when absent."""
    bandwidth_gb: float | None = Field(default=None, gt=0)
    """Bandwidth from one of several devices to the others, 10^9 bytes per second, from which the number of devices is
    found at which the network limits a step: about 450 for the NVLink of an H100, 50 for InfiniBand of 400 Gbit/s, 25
    for PCIe 4.0 x16."""
    break_point_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Time to search up to 400 training traces for the first answers from which the break point is predicted; traces
    not decided by then are left out and counted. 0 predicts no break point."""

    @field_validator("device")
    @classmethod
    def _is_known(cls, device: str | Device | None) -> str | Device | None:
        try:
            if device is not None:
                find_device(device)
        except SettingsError as error:
            raise ValueError(str(error).partition(": ")[2]) from None  # the value is shown with the key
        return device

    def conflicts(self) -> Iterator[Rule]:
        """A utilisation needs a device, and several ranks need a sharding."""
        if self.utilisation is not None and self.device is None:
            yield ("utilisation", "device"), "utilisation is a share of a device's peak; give a device too"
        if self.sharding == "none" and self.num_ranks > 1:
            text = f"{self.num_ranks} ranks train one model together; set sharding: ddp or fsdp2"
            yield ("sharding", "num_ranks"), text

    @property
    def shared(self) -> Literal["none", "ddp", "fsdp2"]:
        """How the ranks share the model."""
        return self.sharding or ("ddp" if self.num_ranks > 1 else "none")

    @property
    def found_device(self) -> Device | None:
        """The device's figures."""
        return None if self.device is None else find_device(self.device)
