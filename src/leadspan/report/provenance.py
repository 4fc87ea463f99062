"""The origin of the numbers: devices, dates, versions and settings."""

import json
from collections.abc import Mapping, Sequence

from leadspan.report.conditions import without
from leadspan.report.inputs import NamedRun
from leadspan.results import RunResult
from leadspan.settings import Settings, flat_settings
from leadspan.study.record import StudyRecord
from leadspan.study.settings import RayExecutor
from leadspan.tables import MISSING

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
