"""From finished runs to the frontier: quality, termination and cost of every run, beside the uncut run's.

The reference is the student whose recipe says `cut.kind: full`, whatever it is called: renaming a run moves
no number. A retention is given for base and students; a teacher was never meant to be kept.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leadspan.errors import EvaluationError, RunError
from leadspan.evaluation.statistics import retention
from leadspan.results import RUN_FILE, CutCounts, EvalResult, Interval, RunResult, TrainResult, load_run
from leadspan.study.record import STUDY_FILE, done_directories

CostName = Literal["seconds", "peak_memory_bytes", "flops", "tokens"]
COST_NAMES: tuple[CostName, ...] = ("seconds", "peak_memory_bytes", "flops", "tokens")


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of one training run.

    Attributes:
        value: Seconds, bytes, operations or tokens.
        of_full: The same as a share of the reference run's, absent without a reference.
    """

    value: float
    of_full: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """Accuracy beside the reference run's, on the same problems.

    Attributes:
        ratio: Retention; absent where it was refused.
        difference: Accuracy minus the reference's; absent where the problems differ.
        reason: Why retention was refused.
    """

    ratio: Interval | None
    difference: Interval | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One run on one task.

    Attributes:
        label: Label of the run, made unique by its name or seed where several runs share one.
        policy: The same without the seed.
        role: `student`, `base` or `teacher`.
        cut_kind: `cut.kind` of the recipe, absent for base and teacher.
        task: Task name.
        num_problems: Problems of the task, each with `samples_per_problem` samples.
        accuracy: Strict accuracy.
        termination: Share of samples that ended with an end-of-turn token.
        cap_hit_rate: Share of samples that ran into the new-token cap.
        tokens_p50: Median number of tokens generated.
        reference: Label of the uncut run this row is compared with; absent for itself and for teachers.
        kept: Retention against the reference, absent without one.
        costs: Training costs by name, absent for base and teacher.
        cut: What the cut took from the training examples (`lost_*`), absent for base and teacher.
    """

    label: str
    policy: str
    role: Literal["student", "base", "teacher"]
    cut_kind: str | None
    task: str
    num_problems: int
    samples_per_problem: int
    accuracy: Interval
    termination: Interval
    cap_hit_rate: float
    tokens_p50: float
    reference: str | None
    kept: Kept | None
    costs: dict[CostName, Cost] | None
    cut: CutCounts | None


@dataclass(frozen=True, slots=True)
class Frontier:
    """All runs on one task.

    Attributes:
        task: Task name.
        rows: One per run, in the order given.
        notes: What a reader must know to compare the rows, e.g. that no run is uncut.
    """

    task: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def students(self) -> list[Row]:
        """The distilled students, in order."""
        return [row for row in self.rows if row.role == "student"]

    def by_cost(self, cost: CostName = "seconds") -> "Frontier":
        """The same rows, cheapest first; rows without costs come last."""
        known = [row for row in self.rows if row.costs]
        unknown = [row for row in self.rows if not row.costs]
        known.sort(key=lambda row: row.costs[cost].value if row.costs else 0.0)
        return Frontier(self.task, (*known, *unknown), self.notes)


def build_frontiers(runs: Sequence[RunResult]) -> list[Frontier]:
    """One frontier per evaluated task, tasks and runs in the order given.

    A run is compared with the uncut run of its own seed, or else with the first uncut run.

    Raises:
        RunError: There is no run, or none was evaluated.
    """
    tasks = list(dict.fromkeys(found.task for run in runs for found in run.evaluations))
    if not tasks:
        raise RunError(f"{len(runs)} runs without an evaluation among them; evaluate one before comparing")
    return [_frontier(task, runs) for task in tasks]


def load_runs(paths: Sequence[Path]) -> list[RunResult]:
    """Read run directories; a study's directory stands for its complete trials, one without a run for those in it.

    Raises:
        RunError: A path holds no run, or a run that cannot be read.
    """
    runs: list[RunResult] = []
    for path in paths:
        found = [path] if (path / RUN_FILE).exists() else sorted(file.parent for file in path.glob(f"*/{RUN_FILE}"))
        if (path / STUDY_FILE).exists():
            found = done_directories(path)
        if not found:
            raise RunError(f"{path}: no {RUN_FILE} in it or one level below; give a run directory or its parent")
        runs += [load_run(directory) for directory in found]
    return runs


def policy_names(runs: Sequence[RunResult]) -> list[str]:
    """The label of each run, with the run's name where other runs of the same seed have that label too.

    The name alone where it begins with the label, as the conditions of a study do.
    """
    shared = _repeated((run.label, _seed(run)) for run in runs)
    full = [run.name if run.name.startswith(run.label) else f"{run.label} ({run.name})" for run in runs]
    return [name if (run.label, _seed(run)) in shared else run.label for run, name in zip(runs, full, strict=True)]


def unique_labels(runs: Sequence[RunResult]) -> list[str]:
    """The policy of each run, with the seed where several runs share the policy."""
    policies = policy_names(runs)
    shared = _repeated(policies)
    return [
        f"{policy} (seed {_seed(run)})" if policy in shared else policy
        for policy, run in zip(policies, runs, strict=True)
    ]


def is_full(run: RunResult) -> bool:
    """Whether the run is a student trained on uncut traces."""
    return run.role == "student" and _cut_kind(run) == "full"


@dataclass(frozen=True, slots=True)
class _Entry:
    run: RunResult
    label: str
    policy: str
    evaluation: EvalResult


def _frontier(task: str, runs: Sequence[RunResult]) -> Frontier:
    entries = [
        _Entry(run, label, policy, evaluation)
        for run, label, policy in zip(runs, unique_labels(runs), policy_names(runs), strict=True)
        for evaluation in run.evaluations
        if evaluation.task == task
    ]
    fulls = [entry for entry in entries if is_full(entry.run)]
    rows = tuple(_row(entry, _reference(entry.run, fulls)) for entry in entries)
    trained = [entry.run.train for entry in entries if entry.run.train is not None]
    return Frontier(task, rows, (*_reference_notes(fulls), *_measurement_notes(trained)))


def _reference(run: RunResult, fulls: Sequence[_Entry]) -> _Entry | None:
    """The run itself if it is uncut, else the first uncut run of its seed, else the first uncut run."""
    own = [entry for entry in fulls if entry.run is run]
    same_seed = [entry for entry in fulls if _seed(entry.run) == _seed(run)]
    return next(iter(own or same_seed or fulls), None)


def _row(entry: _Entry, reference: _Entry | None) -> Row:
    run, evaluation = entry.run, entry.evaluation
    compared = reference if reference and reference.run is not run and run.role != "teacher" else None
    return Row(
        label=entry.label,
        policy=entry.policy,
        role=run.role,
        cut_kind=_cut_kind(run) if run.role == "student" else None,
        task=evaluation.task,
        num_problems=evaluation.num_problems,
        samples_per_problem=evaluation.samples_per_problem,
        accuracy=evaluation.accuracy_strict,
        termination=evaluation.termination_rate,
        cap_hit_rate=evaluation.cap_hit_rate,
        tokens_p50=evaluation.tokens_p50,
        reference=compared.label if compared else None,
        kept=_kept(evaluation, compared.evaluation) if compared else None,
        costs=_student_costs(run, reference),
        cut=run.cut,
    )


def _kept(policy: EvalResult, full: EvalResult) -> Kept:
    try:
        found = retention(policy.correct, full.correct)
    except EvaluationError as error:
        return Kept(None, None, str(error))
    return Kept(found.ratio, found.difference, found.reason)


def _student_costs(run: RunResult, reference: _Entry | None) -> dict[CostName, Cost] | None:
    """Costs of a student; what teacher and base cost is no part of the comparison."""
    if run.train is None or run.role != "student":
        return None
    return _costs(run.train, reference.run.train if reference else None)


def _costs(train: TrainResult, full: TrainResult | None) -> dict[CostName, Cost]:
    reference = _measured(full) if full else {}
    return {
        name: Cost(value, value / reference[name] if reference.get(name) else None)
        for name, value in _measured(train).items()
    }


def _measured(train: TrainResult) -> dict[CostName, float]:
    return {
        "seconds": train.seconds,
        "peak_memory_bytes": train.peak_memory_bytes,
        "flops": train.flops.total,
        "tokens": train.num_tokens,
    }


def _reference_notes(fulls: Sequence[_Entry]) -> list[str]:
    if not fulls:
        return ["No student was trained on uncut traces (cut.kind: full), so nothing is relative to one."]
    names = [full.label for full in fulls]
    rule = f"each run is compared with the one of its own seed, or with {names[0]} where there is none"
    return [f"{len(names)} runs are uncut ({', '.join(names)}): {rule}."] if len(names) > 1 else []


def _measurement_notes(trained: Sequence[TrainResult]) -> list[str]:
    devices = "; ".join(dict.fromkeys(train.device for train in trained))
    sources = "; ".join(dict.fromkeys(train.memory_source for train in trained))
    notes = []
    if len({train.device for train in trained}) > 1:
        notes.append(f"Times come from different devices ({devices}): compare FLOPs or tokens instead.")
    if len({train.memory_source for train in trained}) > 1:
        notes.append(f"Peak memory was measured in different ways ({sources}): it cannot be compared.")
    return notes


def _cut_kind(run: RunResult) -> str | None:
    cut = run.recipe.get("cut")
    return cut.get("kind") if isinstance(cut, dict) else None


def _seed(run: RunResult) -> str:
    return str(run.recipe.get("seed", run.environment.get("seed", "")))


def _repeated(names: Iterable[object]) -> set[object]:
    return {name for name, count in Counter(names).items() if count > 1}
