"""`python -m benchmarks gpu`: all that is to be known of a GPU, in parts with a time limit each, nine minutes in all.

Every part runs in a process of its own and leaves its record when it ends; one that takes too long is ended with all
its processes, and named. A run that is cut off keeps the records of the parts that had ended.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import table
from benchmarks.record import RESULTS, ROOT, Figure, Outcome, record, start
from benchmarks.registry import GPU_PARTS, GpuPart
from benchmarks.table import MEASURED

SECONDS = 540
_LEAST = 5  # a part that has less than this left would not get through its imports
_TINY_FACTOR = 4  # imports take a busy CPU longer than the tiny work does


def main(arguments: Sequence[str], parts: Mapping[str, GpuPart] = GPU_PARTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PART", help=f"all of {', '.join(parts)} when none is named")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: shows that every part runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all parts together ({SECONDS})")
    parser.add_argument("--output", type=Path, help="where records go (benchmarks/results; tiny: build/gpu-tiny)")
    parser.add_argument("--inside", metavar="PART", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - parts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no part; take some of {', '.join(parts)}")
    folder = options.output or (ROOT / "build" / "gpu-tiny" if options.tiny else RESULTS)
    if options.inside:
        return _inside(options.inside, parts[options.inside], options.tiny, folder)
    return _all({name: parts[name] for name in options.names or parts}, options.tiny, options.seconds, folder)


def _inside(name: str, part: GpuPart, is_tiny: bool, folder: Path) -> int:
    """Measure one part in this process, print its figures and write its record."""
    from benchmarks.gpu.setting import Setting

    begun = start()
    measure = getattr(importlib.import_module(f"benchmarks.gpu.{part.module}"), part.function)
    outcome: Outcome = measure(Setting.here(is_tiny), *part.arguments)
    table.show(f"gpu/{name}", outcome)
    record(f"gpu/{name}", outcome, begun, folder)
    return 0


def _all(parts: Mapping[str, GpuPart], is_tiny: bool, seconds: float, folder: Path) -> int:
    from benchmarks.gpu.setting import Setting

    setting = Setting.here(is_tiny)
    begun, deadline = start(), time.monotonic() + seconds
    ends: dict[str, str] = {}
    figures: list[Figure] = []
    for name, part in parts.items():
        clock = time.monotonic()
        limit = min(part.seconds * (_TINY_FACTOR if is_tiny else 1), deadline - clock)
        if limit < _LEAST:
            ends[name] = "left out: no time was left"
        else:
            options = ["--inside", name, "--output", str(folder), *(["--tiny"] if is_tiny else [])]
            ends[name] = run_limited([sys.executable, "-m", "benchmarks", "gpu", *options], limit)
            figures.append(Figure(name, time.monotonic() - clock, part.seconds, unit="s"))
        if ends[name] != MEASURED:
            print(f"gpu/{name}: {ends[name]}")
        described = {"sizes": setting.sizes.name, "seconds": seconds}
        outcome = Outcome(" ".join((__doc__ or "").split()), described, {}, figures, setting.gpu, {"ends": ends})
        record("gpu", outcome, begun, folder)
    page = table.write() if folder == RESULTS else table.write(folder / "page.md", folder)
    print(f"wrote {os.path.relpath(page, ROOT)}")
    return 0 if set(ends.values()) == {MEASURED} else 1


def run_limited(command: Sequence[str], seconds: float) -> str:
    """Run a command in a process group of its own, and end the group when its time is over.

    Returns:
        `measured`, or how it ended instead.
    """
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own children, too: a part starts processes
        process.communicate()
        return f"killed after {seconds:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == 0:
        return MEASURED
    lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
    return f"failed: {lines[-1]}"
