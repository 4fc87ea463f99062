"""First answers of the command line, a new process each time: help, and errors for a mistyped path, key and task."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.timing import alternate

ROUNDS = 10
TARGET, ERROR_TARGET = 0.3, 1.0
HELP = "leadspan --help"
RECIPE = """\
name: mine
output: runs/mine
data: {train: {path: traces.jsonl}}
student: {kind: pretrained, path: student}
loss: {kl_weight: 0}
training: {epochs: 1}
"""


def run() -> Outcome:
    script = Path(sys.executable).with_name("leadspan")
    if not script.exists():
        raise RecordError("leadspan: not installed beside this Python; pip install -e '.[bench]'")
    with tempfile.TemporaryDirectory() as directory:
        recipe = Path(directory) / "recipe.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        errors = {
            "mistyped recipe": ["audit", f"{directory}/recip.yaml"],
            "mistyped key": ["plan", str(recipe), "training.learing_rate=1"],
            "mistyped path": ["doctor", str(recipe)],
            "mistyped task": ["evaluate", directory, "none/such.jsonl", "--output", f"{directory}/o"],
        }
        sides = {HELP: ([str(script), "--help"], 0), "python -c pass": ([sys.executable, "-c", "pass"], 0)}
        sides |= {name: ([str(script), *words], 2) for name, words in errors.items()}
        starts = {name: lambda side=side: _start(*side) for name, side in sides.items()}
        spreads = {name: Spread.of(values) for name, values in alternate(starts, ROUNDS).items()}
    figures = [Figure(f"time of {HELP}", spreads[HELP].median, TARGET, "lower", "s")]
    figures += [Figure(f"error for a {name}", spreads[name].median, ERROR_TARGET, "lower", "s") for name in errors]
    return Outcome(
        method=f"{__doc__} Median of {ROUNDS} after one that is dropped.",
        settings={"rounds": ROUNDS},
        sides=spreads,
        figures=figures,
    )


def _start(command: Sequence[str], exit_code: int) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != exit_code:
        raise RecordError(f"{' '.join(command)}: exit code {done.returncode}, not {exit_code}: {done.stderr[-300:]}")
