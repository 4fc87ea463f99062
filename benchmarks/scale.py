"""Memory of preparing a million traces, against 10,000: `leadspan preview` with a share of the questions held out.

The traces have one line of thought each and Qwen3's tokenizer. Counted is anonymous memory, of the command and its
workers together, every 0.2 s: pages of mapped files, which the kernel drops when memory is short, are not in it.
`prepared` is the same command again, which reads the cache, splits, cuts and counts.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.memory import MIB
from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.store_world import qwen3
from benchmarks.traces import there

FEW, MANY = 10_000, 1_000_000
TARGET = 1.2


def run() -> Outcome:
    peaks: dict[str, float] = {}
    seconds: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number in (FEW, MANY):
            recipe = _write(Path(directory), number)
            for side in (f"{number:,} traces", f"{number:,} traces, prepared"):
                start = time.perf_counter()
                peaks[side] = _peak_memory(recipe) / MIB
                seconds[side] = Spread.of([time.perf_counter() - start])
    few, many = (max(peaks[f"{n:,} traces"], peaks[f"{n:,} traces, prepared"]) for n in (FEW, MANY))
    figures = [Figure(f"memory, {MANY:,} / {FEW:,} traces", many / few, TARGET, "lower")]
    figures += [Figure(f"memory, {side}", peak, None, "lower", "MiB") for side, peak in peaks.items()]
    return Outcome(" ".join((__doc__ or "").split()), {"few": FEW, "many": MANY}, seconds, figures)


def _write(directory: Path, number: int) -> Path:
    """A recipe, and its traces."""
    rng, traces = random.Random(0), directory / f"{number}.jsonl"
    with traces.open("w", encoding="utf-8") as file:
        for i in range(number):
            a, b = rng.randrange(1000), rng.randrange(1000)
            cot = f"I add {a} and {b}. {a} + {b} = {a + b}. Let me check: {a + b} - {b} = {a}. Good."
            row = {"problem": f"Number {i}: what is {a} + {b}?", "cot": cot, "answer": f"The answer is {a + b}."}
            file.write(json.dumps(row) + "\n")
    recipe = {
        "name": "scale",
        "output": str(directory / "run"),
        "tokenizer": str(there("tokenizer-qwen3")),
        "data": {
            "train": {"path": str(traces)},
            "validation": {"kind": "share", "share": 0.05},
            "cache_dir": str(directory / "cache"),
        },
        "student": qwen3(64, 1, 151_936, 0),
        "cut": {"kind": "lead", "p": 0.5},
        "loss": {"kl_weight": 0},
        "training": {"epochs": 1, "report_to": []},
    }
    path = directory / f"{number}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def _peak_memory(recipe: Path) -> int:
    """Highest anonymous memory of a preview and its workers, in bytes (Linux)."""
    peak, command = 0, [sys.executable, "-m", "leadspan", "preview", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous, _with_workers(process.pid))))
            time.sleep(0.2)
    if process.returncode:
        raise RecordError(f"{' '.join(command)}: exit code {process.returncode}")
    return peak


def _with_workers(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
