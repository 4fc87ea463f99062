"""Wall time of `leadspan --help`, a new process each time, beside a bare Python interpreter."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.timing import alternate

ROUNDS = 10
TARGET = 0.3


def run() -> Outcome:
    script = Path(sys.executable).with_name("leadspan")
    if not script.exists():
        raise RecordError("leadspan: not installed beside this Python; pip install -e '.[bench]'")
    seconds = alternate(
        {
            "leadspan --help": lambda: _start([str(script), "--help"]),
            "python -c pass": lambda: _start([sys.executable, "-c", "pass"]),
        },
        ROUNDS,
    )
    sides = {name: Spread.of(values) for name, values in seconds.items()}
    figure = Figure("time of leadspan --help", sides["leadspan --help"].median, TARGET, "lower", "s")
    return Outcome(
        method=f"{__doc__} Median of {ROUNDS} after one that is dropped.",
        settings={"rounds": ROUNDS},
        sides=sides,
        figures=[figure],
    )


def _start(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
