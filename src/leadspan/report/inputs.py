"""The inputs of a report: runs, studies and audits read from disk, and the origin of their numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leadspan.audit.findings import AUDIT_FILE, AuditResult, load_audit
from leadspan.errors import RunError
from leadspan.recipe import TrialId
from leadspan.report.conditions import find_conditions, without
from leadspan.results import RUN_FILE, RunResult, load_run
from leadspan.settings import Settings, flat_settings
from leadspan.study.record import STUDY_FILE, StudyRecord, TrialRecord, load_study
from leadspan.study.settings import RayExecutor
from leadspan.tables import MISSING


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything a report reads.

    Attributes:
        runs: Finished runs, in the order in which they are shown.
        directories: The directory of each run, with its metrics and samples.
        studies: Studies among the paths, for the trials that have no result.
        audits: Audits of the traces.
        skipped: Paths that hold no run.
        refused: Damaged files, each with the reason; their content is in no figure.
    """

    runs: tuple[RunResult, ...]
    directories: tuple[Path, ...]
    studies: tuple[StudyRecord, ...] = ()
    audits: tuple[AuditResult, ...] = ()
    skipped: tuple[Path, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run with the names that it has on the page.

    Attributes:
        label: Unique among the runs: the policy, with the seed where several runs share it.
        policy: The condition, without the seed.
        run: The run.
        directory: Its run directory.
    """

    label: str
    policy: str
    run: RunResult
    directory: Path


@dataclass(frozen=True, slots=True)
class _Stored:
    """The finished runs of a path with their directories, the reasons for refused files, and the study, if any."""

    runs: tuple[tuple[Path, RunResult], ...] = ()
    refused: tuple[str, ...] = ()
    study: StudyRecord | None = None


def _stored_at(path: Path) -> _Stored:
    """The runs of a path: the complete trials of a study, the run in it, or those one level below."""
    study: StudyRecord | None = None
    trials: dict[Path, TrialRecord | None]
    if (path / STUDY_FILE).exists():
        try:
            study = load_study(path)
        except RunError as error:
            return _Stored(refused=(str(error),))
        trials = {path / trial.directory: trial for trial in study.of_state("done")}
    elif (path / RUN_FILE).exists():
        trials = {path: None}
    else:
        # Sorted, because the order of a directory differs between machines.
        trials = {file.parent: None for file in sorted(path.glob(f"*/{RUN_FILE}"))}
    runs: list[tuple[Path, RunResult]] = []
    refused: list[str] = []
    for directory, trial in trials.items():
        try:
            run = load_run(directory)
        # One damaged run does not take the others with it.
        except RunError as error:
            refused.append(str(error))
            continue
        if study and trial:
            # The record has the last word on a trial's identity: a study that was changed may have renamed a condition.
            identity = TrialId(study=study.name, axes=trial.axes, control=trial.control)
            recipe = run.recipe and run.recipe.model_copy(update={"trial": identity})
            run = run.model_copy(update={"name": trial.name, "control": trial.control, "recipe": recipe})
        runs.append((directory, run))
    return _Stored(tuple(runs), tuple(refused), study)


def read_inputs(paths: Sequence[Path | str], audits: Sequence[Path] = ()) -> ReportInputs:
    """Read runs, studies and audits.

    Args:
        paths: Run directories, directories of them, or studies' directories. An `audit.json` in one is read too. Among
            several paths, those that hold no run are skipped; a run that two of them hold counts once. A damaged file
            is named in `refused`, and everything else is read.
        audits: Further files that `leadspan audit --json` wrote.

    Raises:
        RunError: There is no path, one does not exist, none holds a readable run, or a file of `audits` is no audit.
    """
    stored = {path: _stored_at(path) for path in dict.fromkeys(map(Path, paths))}
    if not stored:
        raise RunError("no path was given to read runs from; give a run directory or its parent")
    # Keyed by the resolved path: a study and one of its trials may both be given.
    runs = {directory.resolve(): (directory, run) for at in stored.values() for directory, run in at.runs}
    refused = list(dict.fromkeys(reason for at in stored.values() for reason in at.refused))
    missing = [path for path in stored if not path.exists()]
    if missing or not runs:
        if refused and not missing:
            raise RunError("\n".join(refused))
        path = [*missing, *stored][0]
        study = stored[path].study
        if study is not None:
            raise RunError(f"{path}: none of the {len(study.trials)} trials of the study is complete; run the study")
        raise RunError(f"{path}: no {RUN_FILE} in it or one level below; give a run directory or its parent")
    directories = [directory for directory, _ in runs.values()]
    loaded = {path.resolve(): load_audit(path) for path in audits}
    for path in (directory / AUDIT_FILE for directory in [*stored, *directories]):
        if path.exists() and path.resolve() not in loaded:
            try:
                loaded[path.resolve()] = load_audit(path)
            except RunError as error:
                refused.append(str(error))
    return ReportInputs(
        runs=tuple(run for _, run in runs.values()),
        directories=tuple(directories),
        studies=tuple(at.study for at in stored.values() if at.study),
        audits=tuple(loaded.values()),
        skipped=tuple(path for path, at in stored.items() if not at.runs and not at.refused),
        refused=tuple(refused),
    )


def named_runs(inputs: ReportInputs) -> list[NamedRun]:
    """All runs with the names of the frontier's rows, in the order of the inputs."""
    # By identity: two runs may have equal contents.
    names = {
        id(run): (label, condition.name)
        for condition in find_conditions(inputs.runs)
        for label, run in zip(condition.labels(), condition.runs, strict=True)
    }
    runs = zip(inputs.runs, inputs.directories, strict=True)
    return [NamedRun(*names[id(run)], run, directory) for run, directory in runs]


_IDENTITY = ("name", "output", "seed", "trial", "push")
"""Settings that identify a run or say where it goes, and change no number."""


class Measured(Settings):
    """The devices, dates, seeds and versions behind all numbers of a report."""

    devices: list[str]
    """Devices that trained the students, with the number of ranks."""
    dates: list[str]
    """First and last day of the runs, or the only one."""
    seeds: list[int]
    """Seeds of the students."""
    versions: dict[str, list[str]]
    """Package, commit or platform to the versions in the order in which runs name them."""

    @property
    def sentence(self) -> str:
        """Devices, seeds, dates, and the versions of leadspan and its commit."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        versions = [f"{k} {' and '.join(self.versions[k])}" for k in ("leadspan", "commit") if k in self.versions]
        return ", ".join(filter(None, [" and ".join(self.devices), seeds, " to ".join(self.dates), *versions]))


class SettingsOverview(Settings):
    """The settings and versions of the students."""

    differing: dict[str, dict[str, str]]
    """The settings in which students differ: dotted name, or name of a version in parentheses, to label to value."""
    common: dict[str, str]
    """The settings that all students share."""

    def by_policy(self, policy_of: Mapping[str, str]) -> dict[str, list[str]]:
        """The differing settings as a row for each policy: the values of its runs, each once."""
        labels: dict[str, list[str]] = {}
        for label in next(iter(self.differing.values()), {}):
            labels.setdefault(policy_of[label], []).append(label)
        return {
            policy: [", ".join(dict.fromkeys(map(values.__getitem__, runs))) for values in self.differing.values()]
            for policy, runs in labels.items()
        }


def measured(runs: Sequence[RunResult]) -> Measured:
    """Devices, dates, seeds and versions as the runs recorded them."""
    dates = sorted({run.environment["date"][:10] for run in runs if "date" in run.environment})
    # The date and the seed are shown in their own right.
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in ("date", "seed"))
    return Measured(
        devices=list(dict.fromkeys(run.train.device for run in runs if run.train)),
        dates=dates[:: len(dates) - 1 or 1],  # the first and the last
        seeds=sorted({run.seed for run in runs if run.role == "student"}),
        versions={
            key: list(dict.fromkeys(run.environment[key] for run in runs if key in run.environment)) for key in keys
        },
    )


def settings_overview(named: Sequence[NamedRun]) -> SettingsOverview:
    """The settings and versions of the students, without the names of runs."""
    flat: dict[str, dict[str, str]] = {}
    for label, run in ((entry.label, entry.run) for entry in named if entry.run.role == "student"):
        settings = without(flat_settings(run.recipe), _IDENTITY) if run.recipe else {}
        shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        # In parentheses, so that a package cannot be mistaken for a setting.
        versions = {f"({key})": value for key, value in run.environment.items() if key not in ("date", "seed")}
        flat[label] = shown | versions
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    # A key that a run lacks, such as that of another kind of cut, counts as a difference.
    table = {key: {label: values.get(key, MISSING) for label, values in flat.items()} for key in keys}
    differing = {key: values for key, values in table.items() if len(set(values.values())) > 1}
    common = {key: next(iter(values.values())) for key, values in table.items() if key not in differing}
    return SettingsOverview(differing=differing, common=common)


def remarks(record: StudyRecord) -> list[str]:
    """Sentences on trials of a study that ran at the same time, and the notes on single conditions."""
    executor = record.study.executor
    is_ray, at_once = isinstance(executor, RayExecutor), getattr(executor, "trials_at_once", 1)
    where = "on a Ray cluster, where several may share a node" if is_ray else f"{at_once} at a time"
    shared = [f"Trials ran {where} and slowed each other down, so their times are too long."]
    notes = dict.fromkeys(f"{trial.name}: {trial.note}" for trial in record.trials if trial.note)
    return [*(shared if is_ray or at_once > 1 else []), *notes]
