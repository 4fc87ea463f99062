"""This process among those of a run."""

from datetime import timedelta

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Accelerate's state of this process, set up for a CPU group (gloo) where there is no accelerator.

    Without being told, accelerate starts ranks without an accelerator as runs of their own. Ranks
    wait for each other up to a day: the first one tokenises alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))


def process_device() -> torch.device:
    """The device this process trains on."""
    device = process_state().device
    assert device is not None, "accelerate sets it with the state"
    return device
