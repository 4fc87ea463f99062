"""What a report is made from, read from disk: finished runs with their directories, studies, audits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leadspan.audit.findings import AUDIT_FILE, AuditResult, load_audit
from leadspan.results import RUN_FILE, RunResult
from leadspan.study.compare.conditions import policy_names, seed_of, unique_labels
from leadspan.study.compare.frontier import stored_runs
from leadspan.study.record import STUDY_FILE, StudyRecord, load_study


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything a report reads.

    Attributes:
        runs: Finished runs, in the order to show.
        directories: Where each of them lies: its metrics and samples are beside its `run.json`.
        studies: Studies among the paths given, for the trials that have no result.
        audits: Audits of the traces.
        skipped: Paths among those given that hold no run.
    """

    runs: tuple[RunResult, ...]
    directories: tuple[Path, ...]
    studies: tuple[StudyRecord, ...] = ()
    audits: tuple[AuditResult, ...] = ()
    skipped: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run under the names the page gives it.

    Attributes:
        label: Unique among the runs: the policy, with the seed where several runs share it.
        policy: The condition, without the seed.
        seed: Seed of the run.
        run: The run.
        directory: Its run directory.
    """

    label: str
    policy: str
    seed: int
    run: RunResult
    directory: Path


def gather(paths: Sequence[Path], audits: Sequence[Path] = ()) -> Gathered:
    """Read runs, studies and audits.

    Args:
        paths: Run directories, directories of them, or studies' directories. An `audit.json` in one is read too. Among
            several, those that hold no run are skipped; a run that two of them hold counts once.
        audits: Further files that `leadspan audit --json` wrote.

    Raises:
        RunError: A path is not there, none holds a run, or a file cannot be read.
    """
    skipped = [path for path in paths if path.exists() and not _holds_runs(path)]
    asked = [path for path in paths if path not in skipped] or list(paths)
    found = {place.resolve(): (place, run) for path in asked for place, run in stored_runs(path)}
    directories = [place for place, _ in found.values()]
    stored = [path / AUDIT_FILE for path in dict.fromkeys([*paths, *directories]) if (path / AUDIT_FILE).exists()]
    files = {path.resolve(): path for path in [*audits, *stored]}
    return Gathered(
        runs=tuple(run for _, run in found.values()),
        directories=tuple(directories),
        studies=tuple(load_study(path) for path in dict.fromkeys(paths) if (path / STUDY_FILE).exists()),
        audits=tuple(load_audit(path) for path in files.values()),
        skipped=tuple(skipped),
    )


def _holds_runs(path: Path) -> bool:
    """Whether there is a finished run; a study that has just begun has none."""
    if (path / STUDY_FILE).exists():
        return bool(load_study(path).of_state("done"))
    return (path / RUN_FILE).exists() or any(path.glob(f"*/{RUN_FILE}"))


def named_runs(gathered: Gathered) -> list[NamedRun]:
    """All runs under the names of the frontier's rows."""
    labels, policies = unique_labels(gathered.runs), policy_names(gathered.runs)
    return [
        NamedRun(label, policy, seed_of(run), run, directory)
        for label, policy, run, directory in zip(labels, policies, gathered.runs, gathered.directories, strict=True)
    ]
