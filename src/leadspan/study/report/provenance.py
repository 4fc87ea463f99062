"""Where figures come from: devices, dates, versions, settings, and what is missing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leadspan.results import RunResult
from leadspan.settings import Settings
from leadspan.study.compare.conditions import seed_of
from leadspan.study.compare.words import MISSING
from leadspan.study.record import CaptureRecord, StudyRecord
from leadspan.study.report.gathered import NamedRun

NAMES = ("name", "output", "seed")
"""Settings that tell runs apart and say nothing else."""
_NO_RESULT = {"running": "still running, or interrupted", "waiting": "not run yet"}


class Measured(Settings):
    """What all figures were measured on."""

    devices: list[str]
    """Devices of training, with the number of ranks."""
    dates: list[str]
    """First and last day of the runs, or the only one."""
    seeds: list[int]
    """Seeds of the students."""
    versions: dict[str, list[str]]
    """Package, commit or platform to the versions of all runs."""

    @property
    def sentence(self) -> str:
        """Devices, seeds, dates, and the versions of leadspan and its commit."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        own = [f"{key} {' and '.join(self.versions[key])}" for key in ("leadspan", "commit") if key in self.versions]
        parts = [" and ".join(self.devices), seeds, " to ".join(self.dates), *own]
        return ", ".join(part for part in parts if part)


class SettingsFound(Settings):
    """Settings and versions of the students."""

    differing: dict[str, dict[str, str]]
    """Dotted setting, or version in parentheses, to label to its value, where it is not the same in all students."""
    common: dict[str, str]
    """Those that are the same in all students."""

    def by_policy(self, policy_of: Mapping[str, str]) -> dict[str, list[str]]:
        """What differs, a row for each policy: the values of its runs, each once."""
        labels: dict[str, list[str]] = {}
        for label in next(iter(self.differing.values()), {}):
            labels.setdefault(policy_of[label], []).append(label)
        return {
            policy: [", ".join(dict.fromkeys(values[label] for label in own)) for values in self.differing.values()]
            for policy, own in labels.items()
        }


class Refused(Settings):
    """Records of the trace sources that could not be used."""

    labels: list[str]
    """Runs that refused them."""
    reasons: dict[str, int]
    """Records by reason."""


class MissingTrial(Settings):
    """A trial of a study without a result."""

    study: str
    """Name of the study."""
    trial: str
    """Condition and seed."""
    state: str
    """`failed`, `waiting`, or `running`, which may mean that it was interrupted."""
    reason: str
    """What a failed one died of."""


class StudyState(Settings):
    """How far a study is."""

    name: str
    """Name of the study."""
    num_trials: int
    """Trials, runs that come first included."""
    num_complete: int
    """Trials with a result."""
    notes: list[str]
    """Controls that could not be made, and why."""
    missing: list[MissingTrial]
    """Trials without a result."""
    captures: list[CaptureRecord] = []
    """Stores of teacher targets that trials share, captured before them; their cost is in no trial."""
    remarks: list[str] = []
    """How trials were run beside each other, and what must be known of single conditions."""


def measured(runs: Sequence[RunResult]) -> Measured:
    """Devices, dates, seeds and versions as the runs recorded them."""
    dates = sorted({run.environment["date"][:10] for run in runs if "date" in run.environment})
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in ("date", "seed"))
    return Measured(
        devices=list(dict.fromkeys(run.train.device for run in runs if run.train)),
        dates=dates[:: len(dates) - 1 or 1],
        seeds=sorted({seed_of(run) for run in runs if run.role == "student"}),
        versions={
            key: list(dict.fromkeys(run.environment[key] for run in runs if key in run.environment)) for key in keys
        },
    )


def settings_found(named: Sequence[NamedRun]) -> SettingsFound:
    """Settings and versions of the students, what differs between them apart; names of runs are left out."""
    flat = {entry.label: _all_settings(entry.run) for entry in named if entry.run.role == "student"}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key not in NAMES)
    table = {key: {label: values.get(key, MISSING) for label, values in flat.items()} for key in keys}
    differing = {key: values for key, values in table.items() if len(set(values.values())) > 1}
    common = {key: next(iter(values.values())) for key, values in table.items() if key not in differing}
    return SettingsFound(differing=differing, common=common)


def refusals(named: Sequence[NamedRun]) -> list[Refused]:
    """Refused records; runs that refused the same ones are named together."""
    groups: dict[str, tuple[list[str], dict[str, int]]] = {}
    for entry in named:
        if entry.run.refused:
            key = json.dumps(entry.run.refused, sort_keys=True)
            groups.setdefault(key, ([], entry.run.refused))[0].append(entry.label)
    return [Refused(labels=labels, reasons=reasons) for labels, reasons in groups.values()]


def study_states(records: Sequence[StudyRecord]) -> list[StudyState]:
    """How far each study is, and what has no result."""
    return [
        StudyState(
            name=record.name,
            num_trials=len(record.trials),
            num_complete=len(record.of_state("done")),
            notes=record.notes,
            captures=record.captures,
            remarks=_remarks(record),
            missing=[
                MissingTrial(
                    study=record.name,
                    trial=trial.title,
                    state=trial.state,
                    reason=trial.message or _NO_RESULT.get(trial.state, ""),
                )
                for trial in record.trials
                if trial.state != "done"
            ],
        )
        for record in records
    ]


def _remarks(record: StudyRecord) -> list[str]:
    executor = record.study.get("executor", {})
    is_ray, at_once = executor.get("kind") == "ray", executor.get("trials_at_once", 1)
    where = "on a Ray cluster, where several may share a node" if is_ray else f"{at_once} at once"
    beside = [f"trials ran {where}: times hold what they took from each other"] if is_ray or at_once > 1 else []
    return [*beside, *dict.fromkeys(f"{trial.name}: {trial.note}" for trial in record.trials if trial.note)]


def _all_settings(run: RunResult) -> dict[str, str]:
    versions = {f"({key})": value for key, value in run.environment.items() if key not in ("date", "seed")}
    return {**dict(_flatten(run.recipe)), **versions}


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:  # Any: a recipe is plain JSON
    below = value
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        below = dict(enumerate(value))
    if isinstance(below, Mapping) and below:
        for key, inner in below.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
