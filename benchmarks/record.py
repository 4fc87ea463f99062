"""What a benchmark found, and its record: one JSON file per benchmark and device.

A record names the commit it was measured at; outside a git checkout nothing is recorded.
"""

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SHARED = ROOT.parent / "shared" / "data"
"""Traces and tokenizer for benchmarks, beside the checkout."""
PACKAGES = (
    "leadspan",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "numpy",
    "pyarrow",
    "trl",
    "liger-kernel",
    "orda-kernel",
    "triton",
    "flash-attn",
)


class RecordError(RuntimeError):
    """A result cannot be recorded, or a benchmark lacks something it needs."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one side: median and quartiles."""

    unit: str
    median: float
    first_quartile: float
    third_quartile: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float], unit: str = "s") -> "Spread":
        values = list(samples) * 2 if len(samples) == 1 else list(samples)
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        return cls(unit, median, first, third, len(samples))


@dataclass(frozen=True, slots=True)
class Figure:
    """One result, with its target where it has one."""

    name: str
    value: float
    target: float | None = None
    better: Literal["higher", "lower"] = "lower"
    unit: str = ""

    @property
    def is_reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


@dataclass(frozen=True)
class Outcome:
    """What a benchmark returns: what was compared and how, each side's samples, and the figures."""

    method: str
    settings: dict[str, Any]
    sides: dict[str, Spread]
    figures: list[Figure]
    gpu: str | None = None
    """Name of the GPU it ran on; None for the CPU."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """What is noted before a benchmark runs."""

    commit: str
    load_average: tuple[float, ...]


def start(root: Path = ROOT) -> Start:
    """Note commit and load; a result that could not be recorded is not even measured.

    Raises:
        RecordError: The root is no git checkout.
    """
    return Start(commit(root), os.getloadavg())


def record(name: str, outcome: Outcome, begun: Start, folder: Path = RESULTS) -> Path:
    """Write the record of one benchmark on this device, replacing an earlier one."""
    device = device_of(outcome.gpu)
    entry = {
        "name": name,
        "commit": begun.commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": versions(),
        "load_average": {"before": begun.load_average, "after": os.getloadavg()},
        "method": outcome.method,
        "settings": outcome.settings,
        "sides": {side: asdict(spread) for side, spread in outcome.sides.items()},
        "figures": [{**asdict(figure), "is_reached": figure.is_reached} for figure in outcome.figures],
        "details": outcome.details,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '-')}-{_slug(device)}.json"
    path.write_text(json.dumps(_rounded(entry), indent=2) + "\n", encoding="utf-8")
    return path


def side_in_process(module: str, *arguments: object) -> Any:
    """Run one side of a benchmark, `python -m MODULE ARGUMENTS`, in a fresh process; the JSON of its last line.

    Raises:
        RecordError: It failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordError(f"{' '.join(command[2:])}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def commit(root: Path = ROOT) -> str:
    """Commit of a checkout, with `+` when what lies under `src` differs from it.

    Raises:
        RecordError: It is no git checkout.
    """
    changes = ("status", "--porcelain", "--", "src")
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root.resolve():
            raise RecordError(f"{root.name}: not the root of a git checkout; a result is recorded with its commit")
        return _git(root, "rev-parse", "HEAD")[:12] + ("+" if _git(root, *changes) else "")
    except (OSError, subprocess.CalledProcessError):
        raise RecordError(f"{root.name}: no commit can be read; run benchmarks in a git checkout") from None


def versions() -> dict[str, str]:
    """Installed packages that matter, and Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_of(gpu: str | None) -> dict[str, Any]:
    """Model and cores of the processor, and the GPU where one was used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"kind": "gpu" if gpu else "cpu", "gpu": gpu, "cpu": _cpu_model(), "cores": cores}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _slug(device: dict[str, Any]) -> str:
    words = device["gpu"] or f"{device['cpu']} {device['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _rounded(value: Any) -> Any:
    """Six significant digits, so that a record can be read and compared."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
