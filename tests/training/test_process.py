import ctypes
import os
from pathlib import Path

import pytest
import torch

from leadspan.training.process import freed_memory_reused

MIB = 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc")
def test_freed_tensors_stay_for_the_next_step_and_are_returned_in_the_end() -> None:
    @freed_memory_reused()
    def steps() -> int:
        for _ in range(2):
            torch.ones(100 * MIB)
        return _resident()

    before = _resident()
    assert steps() - before > 390 * MIB  # one tensor of 400 MiB, freed, and taken twice
    assert _resident() - before < 50 * MIB
