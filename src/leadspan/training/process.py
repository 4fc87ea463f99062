"""This process among those of a run."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Accelerate's state of this process, set up for a CPU group (gloo) where there is no accelerator.

    Without being told, accelerate starts ranks without an accelerator as runs of their own.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def process_device() -> torch.device:
    """The device this process trains on."""
    device = process_state().device
    assert device is not None, "accelerate sets it with the state"
    return device
