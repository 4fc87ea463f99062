import ctypes
import os
import subprocess
import sys

import pytest

MIB = 2**20
SCRIPT = """
from pathlib import Path
import torch
from leadspan.ranks import freed_memory_reused

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

@freed_memory_reused()
def steps():
    for _ in range(10):
        torch.ones(100 * 2**20)
    return resident()

print(resident(), steps(), resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc")
def test_freed_tensors_stay_for_the_next_step_and_are_returned_in_the_end() -> None:
    """In a process of its own: what others have freed before would be taken first."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, inside, after = map(int, done.stdout.split())
    assert 390 * MIB < inside - before < 1300 * MIB  # ten tensors of 400 MiB, each freed before the next
    assert after - before < 50 * MIB


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "(WORLD_SIZE=2 RANK=0"),
        ({"WORLD_SIZE": "2", "RANK": "abc"}, "(WORLD_SIZE=2 RANK=abc"),
        ({"LOCAL_RANK": "x"}, "(LOCAL_RANK=x): "),
    ],
    ids=["no address", "no number", "no number on this machine"],
)
def test_variables_of_ranks_that_cannot_join_are_one_error(variables: dict[str, str], message: str) -> None:
    code = (
        "from leadspan.ranks import process_state\ntry: process_state()\nexcept Exception as error: print(repr(error))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    run = subprocess.run([sys.executable, "-c", code], env=bare | variables, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("RunError(") and message in run.stdout and "torchrun" in run.stdout


def test_a_gpu_without_float64_is_not_trained_on() -> None:
    """torch and accelerate are told of a GPU of Apple's, in a process of its own."""
    code = """
import torch, accelerate.state
torch.accelerator.is_available = accelerate.state.is_mps_available = lambda *args, **kwargs: True
torch.accelerator.current_accelerator = lambda check_available=False: torch.device("mps")
from leadspan.ranks import process_device
print(process_device())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "cpu\n"
