"""The results of runs: the only schema of a run directory.

All later readers (tables, frontier, report) read these types and nothing else. A run directory holds
`run.json` (one `RunResult`), `metrics.jsonl`, `samples/*.jsonl`, and the trained model under `student/`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.data.truncation.policy import CutCounts, Policy, stop_warning
from leadspan.errors import RunError
from leadspan.evaluation.result import EvalResult
from leadspan.files import DIGESTS_FILE, fault, is_sealed, seal, write_atomically
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.recipe import Recipe
from leadspan.settings import Amount, Count, Settings, load_json
from leadspan.statistics.intervals import Interval
from leadspan.tables import CostName
from leadspan.training.result import ADAPTER_DIR, STUDENT_DIR, TrainResult

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_DIR = "samples"


class Prediction(Settings):
    """The predicted cost of a run, computed before it began."""

    num_steps: Count
    """Optimiser steps."""
    num_tokens: Count
    """Tokens through the student's forward pass."""
    num_weighted_tokens: Count
    """Positions with a loss."""
    flops: FlopsByPart
    """All ranks together."""
    memory: MemoryByPart
    """One rank, at the highest moment of the largest micro-batch."""
    seconds: Amount | None = None
    """Wall time of the training loop, without loading and validation; absent without a calibration or a stated peak.
    The first step counts as any other, although it also compiles and allocates (`TrainResult.steady_seconds`)."""
    seconds_source: str | None = None
    """What the predicted time is based on: a calibration, or a stated share of a device's peak."""
    is_bound: bool = False
    """Whether the costs are upper bounds: every rollout is assumed to reach its cap."""
    money: Amount | None = None
    """Price of that time on all ranks, in `plan.currency`; absent without a time or a price."""
    break_point: Interval | None = None
    """LSP*, the share of a sequence below which a lead cut is predicted to hurt: mean of (|P| + f |CoT|) / T over the
    training traces whose chain of thought states the right answer, where f is the share of the chain before its first
    statement. Absent where no trace states it."""
    break_point_traces: Count | None = None
    """Traces that were searched for it, including those without a right answer or a statement."""
    break_point_left: Count | None = None
    """Traces that remained unsearched when `plan.break_point_seconds` was spent."""


class RunResult(Settings):
    """One run: its recipe, its training, its cost and its evaluations."""

    schema_version: Literal[2] = 2
    """Version of this schema."""
    name: str
    """Name of the run."""
    label: str
    """Short label of the condition, e.g. `lead 0.5`."""
    role: Literal["student", "base", "teacher"] = "student"
    """A distilled student, the base that it started from, or the teacher."""
    control: str | None = None
    """Which control of a study the run is; absent for the study's conditions and for runs outside a study."""
    seed: int
    """Seed of the recipe; for a model that was only evaluated, the seed of its sampling."""
    recipe: Recipe | None
    """The resolved recipe; null for a model that was not trained by leadspan."""
    environment: dict[str, str]
    """Versions, commit, platform, date and seed."""
    cut: CutCounts | None = None
    """Counts of the cut on the training set; absent where the student learnt from no trace."""
    refused: dict[str, Count] = {}
    """Records of the trace source that could not be used, by reason."""
    prediction: Prediction | None = None
    """Predicted cost of the training, computed before it began."""
    train: TrainResult | None = None
    """Measured figures of the training; absent for base and teacher."""
    evaluations: list[EvalResult] = Field(default_factory=list)
    """Evaluations, one for each task."""

    @property
    def policy(self) -> Policy | None:
        """The cut of a student's recipe; None for base, teacher, and models without a recipe."""
        return self.recipe.cut if self.recipe and self.role == "student" else None

    def end_warning(self, label: str) -> str:
        """What was seen of students that learnt as this one did and did not end their answers; "" if nothing was."""
        if self.recipe is not None and self.recipe.rollout is not None:
            return self.recipe.rollout.short_warning(self.train.num_steps if self.train else 1)
        return stop_warning({label: self.cut}) if self.cut is not None else ""

    @property
    def start(self) -> ModelSettings | None:
        """The weights that training started from, or that were evaluated untrained; None where the run names none."""
        if self.recipe:
            return self.recipe.student
        return Pretrained(path=self.evaluations[0].model) if self.evaluations else None

    @model_validator(mode="after")
    def _one_result_a_task(self) -> "RunResult":
        # Reports find a result by its task: of two, one would be left out in silence.
        tasks = [result.task for result in self.evaluations]
        if len(set(tasks)) < len(tasks):
            raise ValueError("evaluations name a task twice; name each once")
        return self


def predicted_and_measured(
    prediction: Prediction | None, train: TrainResult
) -> dict[CostName, tuple[float | None, float]]:
    """Tokens, operations, time and memory; the measured time counts the first step, which compiles, as a usual one."""
    return {
        "tokens": (prediction and prediction.num_tokens, train.num_tokens),
        "flops": (prediction and prediction.flops.total, train.flops.total),
        "seconds": (prediction and prediction.seconds, train.steady_seconds),
        "peak_memory_bytes": (prediction and prediction.memory.total, train.peak_memory_bytes),
    }


def save_run(result: RunResult, directory: Path) -> Path:
    """Write `run.json` atomically, after the digests of it, of the metrics and of the samples."""
    path, content = directory / RUN_FILE, (result.model_dump_json(indent=1) + "\n").encode()
    directory.mkdir(parents=True, exist_ok=True)
    names = [METRICS_FILE, *(evaluation.samples_file for evaluation in result.evaluations)]
    seal(directory, [name for name in names if name and (directory / name).exists()], {RUN_FILE: content})
    # Last: a run directory counts as finished as soon as it has this file.
    write_atomically(path, content)
    return path


def load_run(directory: Path | str) -> RunResult:
    """Read the `run.json` of a run directory.

    Raises:
        RunError: There is none, it is damaged, or another version wrote it.
    """
    path = Path(directory) / RUN_FILE
    # By its digest first: what is read from a damaged file may still be valid.
    if path.exists():
        check_written(path)
    remedy = "give a directory that a finished `leadspan distill` or `evaluate` of this version wrote"
    return load_json(RunResult, path, remedy, RunError)


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a finished run, as a sentence; None where all are undamaged."""
    # The student first: it is what a run is for, and has digests of its own, as it may be moved away alone.
    for name in (STUDENT_DIR, ADAPTER_DIR):
        if wrong := fault(directory / name):
            return f"{name}: {wrong}"
    if wrong := fault(directory):
        return wrong
    try:
        has_trained = load_run(directory).train is not None
    except RunError:  # of another version; whoever reads it next says so
        return None
    return f"{STUDENT_DIR} is missing" if has_trained and not (directory / STUDENT_DIR).exists() else None


def check_written(path: Path) -> None:
    """Compare a file of a finished run with its digest.

    Raises:
        RunError: The file is damaged.
    """
    if wrong := written_fault(path):
        raise RunError(f"{path}: {wrong}; restore it from a copy, or if it was meant to change, remove {DIGESTS_FILE}")


def written_fault(path: Path) -> str | None:
    """What is wrong with a file of a finished run by its digest, as a sentence; None where it is undamaged."""
    # Samples lie one level below the digests of their run, whose own name may be that of their directory.
    directory = path.parents[1] if path.parent.name == SAMPLES_DIR and not is_sealed(path.parent) else path.parent
    return fault(directory, [str(path.relative_to(directory))])
