"""The benchmarks by name. Each is a module with `run() -> Outcome`; its docstring says what is compared, and how."""

import ast
import importlib
from pathlib import Path

from benchmarks.record import Outcome

NAMES = (
    "prepare",
    "audit",
    "packing",
    "cut_step",
    "gkd_step",
    "loss_time",
    "loss_memory",
    "stored_step",
    "capture",
    "stored_targets",
    "store_study",
    "plan_time",
    "plan_memory",
    "sampling",
    "coverage",
    "cli_help",
)


def run(name: str) -> Outcome:
    """Load a benchmark and run it."""
    return importlib.import_module(f"benchmarks.{name}").run()


def summary(name: str) -> str:
    """First line of a benchmark's docstring, read without importing what it needs."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]
