"""The benchmarks by name. Each is a module with `run() -> Outcome`; its docstring says what is compared, and how."""

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import Outcome

NAMES = (
    "prepare",
    "audit",
    "packing",
    "cut_step",
    "bare_loop",
    "one_by_one",
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
    "on_policy",
    "on_policy_step",
    "coverage",
    "cli_help",
    "start_up",
    "scale",
    "hold",
    "hostile",
)
PARTS = tuple(f"hold/{part}" for part in ("kills", "flips", "writers", "disk", "signals"))
"""Parts of a benchmark, measured alone and not recorded."""


class GpuPart(NamedTuple):
    """Module and function of a part of `gpu`, what it is given besides the setting, and its limit in seconds."""

    module: str
    function: str
    arguments: tuple[str, ...]
    seconds: int


# What a card is judged by comes first, so that a run that is cut off has it.
GPU_PARTS = {
    "tests": GpuPart("others", "tests", (), 60),
    "loss-2560": GpuPart("losses", "loss", ("2560",), 75),
    "gradients": GpuPart("losses", "gradients", (), 35),
    "training": GpuPart("training", "training", (), 70),
    "stored": GpuPart("training", "stored", (), 80),
    "capture": GpuPart("others", "capture", (), 40),
    "loss-2048": GpuPart("losses", "loss", ("2048",), 35),
    "loss-1024": GpuPart("losses", "loss", ("1024",), 25),
    "attention": GpuPart("training", "attention", (), 25),
    "hybrid": GpuPart("training", "hybrid", (), 25),
    "generation": GpuPart("others", "generation", (), 40),
    "trl": GpuPart("others", "trl", (), 30),
}
ORDER = (*NAMES, "gpu", *(f"gpu/{part}" for part in GPU_PARTS))
"""Of records on the page."""


def run(name: str) -> Outcome:
    """Load a benchmark and run it, or the part behind a slash."""
    module, _, part = name.partition("/")
    loaded = importlib.import_module(f"benchmarks.{module}")
    return loaded.run_part(part) if part else loaded.run()


def summary(name: str) -> str:
    """First line of the docstring of a benchmark or a part of `gpu`, read without importing what it needs."""
    group, _, part = name.partition("/")
    gpu_part = GPU_PARTS.get(part)
    module = f"gpu/{gpu_part.module}" if gpu_part else "gpu/harness" if group == "gpu" else name
    tree: ast.AST = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    if gpu_part:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == gpu_part.function)
    return (ast.get_docstring(tree) or "").partition("\n")[0]  # pyright: ignore[reportArgumentType]  # both have one
