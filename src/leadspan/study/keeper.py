"""The record of a study on disk: what is complete, what failed, what runs."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leadspan.errors import LeadspanError, RunError
from leadspan.results import RUN_FILE, load_run
from leadspan.study.config import Study
from leadspan.study.record import CaptureRecord, State, StudyRecord, TrialRecord, load_study, save_study
from leadspan.study.sweep import Event
from leadspan.study.trials import SharedStore, Trial
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.manifest import read_joined


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study will run.

    Attributes:
        before: Runs that come first, one after the other.
        trials: Conditions and controls, seed by seed.
        notes: Controls that could not be made, and why.
        stores: Stores that trials share.
    """

    before: list[Trial]
    trials: list[Trial]
    notes: list[str] = field(default_factory=list)
    stores: list[SharedStore] = field(default_factory=list)

    def readers(self, store: SharedStore) -> list[Trial]:
        """The trials that read a store."""
        return [trial for trial in self.trials if trial.recipe.targets == StoredTargets(path=store.directory)]


def is_done(trial: Trial) -> bool:
    """Whether the run directory of a trial holds a finished run of exactly its recipe.

    Raises:
        RunError: It holds a finished run of another recipe.
    """
    directory = trial.recipe.output
    if not (directory / RUN_FILE).exists():
        return False
    try:
        found = load_run(directory).recipe
    except RunError:
        return False  # running it again will say what is wrong
    wanted = _compared(trial.recipe.model_dump(mode="json"), trial)
    found = _compared(found, trial)
    differing = sorted(key for key in wanted if wanted[key] != found.get(key))
    if differing:
        raise RunError(
            f"{directory}: it holds a finished run of another recipe (its {', '.join(differing)} differ); "
            "give that recipe another output, or remove the directory"
        )
    return True


def _compared(recipe: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """A recipe without its name and place; of a trial's store the fingerprint speaks, wherever it lies."""
    compared = {key: value for key, value in recipe.items() if key not in ("output", "name")}
    if trial.fingerprint and trial.control != "before":
        targets = {key: value for key, value in (recipe.get("targets") or {}).items() if key != "path"}
        compared["targets"] = targets
    return compared


def planned_record(study: Study, plan: StudyPlan) -> StudyRecord:
    """The record before anything runs: what is complete, what failed the last time, what is to be done.

    Raises:
        RunError: A run that comes first, or a trial, has a finished run of another recipe in its directory.
    """
    earlier: dict[str, TrialRecord] = {}
    captured: dict[str, CaptureRecord] = {}
    with contextlib.suppress(RunError):  # what is complete is read from the run directories
        found = load_study(study.output)
        earlier = {trial.fingerprint: trial for trial in found.trials}
        captured = {capture.directory: capture for capture in found.captures}
    trials = [_record(trial, study.output, earlier.get(trial.fingerprint)) for trial in [*plan.before, *plan.trials]]
    return StudyRecord(
        name=study.name,
        study=study.model_dump(mode="json"),
        trials=trials,
        captures=[capture_record(store, study.output, captured) for store in plan.stores],
        notes=plan.notes,
    )


def capture_record(store: SharedStore, output: Path, earlier: Mapping[str, CaptureRecord]) -> CaptureRecord:
    """What is known of a store: `waiting` until it has been looked at, with the counts of what it holds already.

    Args:
        store: The store.
        output: Directory of the study.
        earlier: Records of an earlier time by directory, for a store that has been removed since.
    """
    directory = os.path.relpath(store.directory, output)
    record = CaptureRecord(name=store.title, directory=directory, state="waiting", num_trials=len(store.recipes))
    try:
        manifest = read_joined(store.directory)
    except LeadspanError:
        return earlier[directory].model_copy(update={"state": "waiting"}) if directory in earlier else record
    return record.model_copy(
        update={
            "num_positions": manifest.num_positions,
            "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
            "seconds": manifest.seconds,
            "flops": manifest.flops,
        }
    )


def _record(trial: Trial, output: Path, earlier: TrialRecord | None) -> TrialRecord:
    record = TrialRecord(
        name=trial.recipe.name,
        seed=trial.recipe.seed,
        control=trial.control,
        note=trial.note,
        directory=os.path.relpath(trial.recipe.output, output),
        fingerprint=trial.fingerprint,
        state="done" if is_done(trial) else "waiting",
    )
    if earlier is None or (earlier.state == "done") != (record.state == "done"):
        return record
    kept = earlier.state if earlier.state == "failed" else record.state
    return record.model_copy(update={"state": kept, "message": earlier.message, "seconds": earlier.seconds})


class Keeper:
    """Keeps the record of a study on disk."""

    def __init__(self, study: Study, plan: StudyPlan):
        """Write the record with what is complete."""
        self.output = study.output
        self.record = planned_record(study, plan)
        self.places = {trial.fingerprint: place for place, trial in enumerate(self.record.trials)}
        self.started: dict[str, float] = {}
        save_study(self.record, self.output)

    def state(self, trial: Trial) -> State:
        """How far a trial is."""
        return self.record.trials[self.places[trial.fingerprint]].state

    def note_capture(self, number: int, store: SharedStore, state: State, message: str = "") -> None:
        """Take down what happened to a store."""
        found = capture_record(store, self.output, {c.directory: c for c in self.record.captures})
        captures = list(self.record.captures)
        captures[number] = found.model_copy(update={"state": state, "message": message})
        self.record = self.record.model_copy(update={"captures": captures})
        save_study(self.record, self.output)

    def note(self, trial: Trial, event: Event) -> None:
        """Take down what happened to a trial."""
        changes: dict[str, object] = {"state": "running", "message": "", "seconds": None}
        if event.kind == "started":
            self.started[trial.fingerprint] = time.monotonic()
        else:
            start = self.started.get(trial.fingerprint)  # a node may fail before it starts one
            seconds = None if start is None else round(time.monotonic() - start, 3)
            changes = {"state": event.kind, "message": event.text, "seconds": seconds}
        place = self.places[trial.fingerprint]
        trials = list(self.record.trials)
        trials[place] = trials[place].model_copy(update=changes)
        self.record = self.record.model_copy(update={"trials": trials})
        save_study(self.record, self.output)
