"""`leadspan audit` of 1,000 real traces, start of the interpreter included.

The command runs by itself, with one process and with two, on the first 1,000 records of the three files of real
traces (the traces are read, rendered, tokenised, searched for their first answer, compared by Math-Verify where
spelling leaves it open, hashed for near duplicates), with the GSM8K test set as the task to look for.
"""

import os
import subprocess
import sys

from benchmarks.record import ROOT, SHARED, Figure, Outcome, Spread
from benchmarks.timing import alternate
from benchmarks.traces import trace_source

RECORDS = 1000
ROUNDS = 3
TARGET_SECONDS = 60.0


def run() -> Outcome:
    seconds = alternate({"1 process": lambda: _audit(1), "2 processes": lambda: _audit(2)}, ROUNDS, warm_up=0)
    spread = {name: Spread.of(values) for name, values in seconds.items()}
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"records": RECORDS, "tokenizer": "Qwen3", "task": "gsm8k_test"},
        sides=spread,
        figures=[
            Figure(f"time for {RECORDS} records, 2 processes", spread["2 processes"].median, TARGET_SECONDS, unit="s"),
            Figure(f"time for {RECORDS} records, 1 process", spread["1 process"].median, unit="s"),
        ],
    )


def _audit(num_workers: int) -> None:
    command = [sys.executable, "-m", "leadspan", "audit", trace_source().path, "--limit", str(RECORDS)]
    command += ["--tokenizer", str(SHARED / "tokenizer-qwen3"), "--task", str(SHARED / "benchmarks/gsm8k_test.jsonl")]
    command += ["--workers", str(num_workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
