"""From the start of a command to its first line of output and to its end, a new process each time.

A tiny student (Qwen3 architecture, 64 wide, 2 layers, vocabulary of 4,096) and DeepSeek-R1's traces, which the dropped
first round prepares; the commands that read a run read one of two steps. `import torch` is what no command that
computes can do without, so the figures of those are the time beyond it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.store_world import qwen3, write_tokenizer
from benchmarks.traces import there

ROUNDS = 5
FIRST_LINE_TARGET, BEYOND_TORCH_TARGET = 1.0, 3.0
IMPORTS = {
    "python -c pass": "pass",
    "import leadspan": "import leadspan",
    "import torch": "import torch",
    "import torch, Datasets, Transformers": "import torch, datasets; from transformers import AutoTokenizer",
    "import torch, Datasets, Transformers' models": "import torch, datasets, transformers.modeling_utils",
}
BEYOND_TORCH = ("preview", "plan", "doctor")
"""Commands on a prepared recipe that the target is about."""


def run() -> Outcome:
    spreads: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        commands = _commands(folder)
        sides = {name: [sys.executable, "-c", code] for name, code in IMPORTS.items()}
        sides |= {name: [sys.executable, "-m", "leadspan", *words] for name, words in commands.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(1 + ROUNDS):
            for name, command in sides.items():
                seconds[name].append(_first_line_and_end(command, folder))
    for name, pairs in seconds.items():
        first_lines, ends = zip(*pairs[1:], strict=True)
        if name not in IMPORTS:
            spreads[f"{name}: first line"] = Spread.of(first_lines)
        spreads[name] = Spread.of(ends)
    figures = [
        Figure(f"{name}: first line", spreads[f"{name}: first line"].median, FIRST_LINE_TARGET, "lower", "s")
        for name in commands
    ]
    torch_seconds = spreads["import torch"].median
    figures += [
        Figure(f"{name}: beyond import torch", spreads[name].median - torch_seconds, BEYOND_TORCH_TARGET, "lower", "s")
        for name in BEYOND_TORCH
    ]
    return Outcome(" ".join((__doc__ or "").split()), {"rounds": ROUNDS}, spreads, figures)


def _commands(folder: Path) -> Mapping[str, Sequence[str]]:
    """Arguments of each command, and the files that they read."""
    tokenizer, vocab = write_tokenizer(folder)
    problems = folder / "problems.jsonl"
    problems.write_text(json.dumps({"question": "1 + 1 = ?", "answer": "2"}), encoding="utf-8")
    recipe = {
        "name": "start-up",
        "output": str(folder / "run"),
        "tokenizer": str(tokenizer),
        "data": {"train": {"path": str(there("traces/deepseek_r1.jsonl"))}, "cache_dir": str(folder / "cache")},
        "student": qwen3(64, 2, vocab, 0),
        "cut": {"kind": "lead", "p": 0.5},
        "loss": {"kl_weight": 0},
        "training": {"steps": 2, "report_to": []},
        "evaluation": {"tasks": [{"name": "sums", "path": str(problems)}], "sampling": {"max_new_tokens": 8}},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    study = {"name": "start-up", "output": str(folder / "study"), "recipe": str(path), "seeds": [0, 1]}
    study["axes"] = {"cut": [{"kind": "full"}, {"kind": "lead", "p": 0.5}]}
    study_path = folder / "study.yaml"
    study_path.write_text(json.dumps(study), encoding="utf-8")
    _first_line_and_end([sys.executable, "-m", "leadspan", "distill", str(path)], folder)
    return {
        "--help": ["--help"],
        "schema": ["schema"],
        "recipes": ["recipes"],
        "power": ["power"],
        "preview": ["preview", str(path)],
        "audit": ["audit", str(path)],
        "plan": ["plan", str(path)],
        "doctor": ["doctor", str(path)],
        "distill --dry-run": ["distill", str(path), "--dry-run"],
        "study --dry-run": ["study", str(study_path), "--dry-run"],
        "sample": ["sample", str(folder / "run"), "1 + 1 = ?", "--max-new-tokens", "1"],
        "report": ["report", str(folder / "run"), "--output", str(folder / "report.html")],
    }


def _first_line_and_end(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds to the first line of a command, on either stream, and to its end."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, "COLUMNS": "100"}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        first_line = time.perf_counter() - start
        rest = process.stdout.read()
    if process.returncode:
        raise RecordError(f"{' '.join(command)}: exit code {process.returncode}: {(line + rest).decode()[-500:]}")
    return first_line, time.perf_counter() - start
