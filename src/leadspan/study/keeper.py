"""Keeps the record of a study on disk and shows it: which trials are complete, failed or running, and the time left."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from leadspan.errors import LeadspanError, RunError
from leadspan.results import RUN_FILE, damage, load_run
from leadspan.status import LOG_SECONDS, duration
from leadspan.study.executors.local import Event
from leadspan.study.fingerprint import without_places
from leadspan.study.record import STUDY_FILE, CaptureRecord, State, StudyRecord, TrialRecord, load_study, save_study
from leadspan.study.settings import Study
from leadspan.study.trials import SharedStore, Trial
from leadspan.tables import Block
from leadspan.teacher.manifest import read_joined
from leadspan.teacher.settings import StoredTargets
from leadspan.traces.read import fingerprint
from leadspan.training.result import IDENTITY_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """Everything that a study will run.

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
    if trial.control == "before" and damage(directory):
        return False  # trials that build on it would be refused; running it again replaces it
    try:
        stored = load_run(directory).recipe
    except RunError:
        return False  # running it again reports the fault, or replaces it
    expected, trained = without_places(trial.recipe), {} if stored is None else without_places(stored)
    differing = sorted(key for key in expected if expected[key] != trained.get(key))
    if trial.control == "before" and not differing:
        # The name of its directory does not show the content of its traces; of runs without training nothing is known.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            trained_on = json.loads((directory / IDENTITY_FILE).read_bytes())["contents"]["data.train"]
            source = trial.recipe.data.train
            if Path(source.path).exists() and trained_on != fingerprint(source):
                differing = ["traces"]
    if differing:
        raise RunError(
            f"{directory}: it holds a finished run of another recipe (its {', '.join(differing)} differ); "
            "give that recipe another output, or remove the directory"
        )
    return True


def planned_record(study: Study, plan: StudyPlan) -> StudyRecord:
    """The record before anything runs: which trials are complete, failed the last time, or wait.

    Raises:
        RunError: A run that comes first, or a trial, has a finished run of another recipe in its directory.
    """
    earlier: dict[str, TrialRecord] = {}
    captured: dict[str, CaptureRecord] = {}
    if (study.output / STUDY_FILE).exists():
        try:
            record = load_study(study.output)
            earlier = {trial.fingerprint: trial for trial in record.trials}
            captured = {capture.directory: capture for capture in record.captures}
        except RunError as error:  # what is complete is read from the run directories
            logger.warning("%s; it is written anew", str(error).partition(";")[0])
    trials = [_record(trial, study.output, earlier.get(trial.fingerprint)) for trial in [*plan.before, *plan.trials]]
    return StudyRecord(
        name=study.name,
        study=study,
        trials=trials,
        captures=[capture_record(store, study.output, captured) for store in plan.stores],
        notes=plan.notes,
    )


def capture_record(store: SharedStore, output: Path, earlier: Mapping[str, CaptureRecord]) -> CaptureRecord:
    """The record of a store: `waiting` until it is checked, with the counts of what it holds already.

    One that has been removed since has those of its earlier record, by directory relative to the study's.
    """
    directory = os.path.relpath(store.directory, output)
    record = CaptureRecord(name=store.title, directory=directory, state="waiting", num_trials=len(store.recipes))
    try:
        manifest = read_joined(store.directory)
    except LeadspanError:
        return earlier[directory].model_copy(update={"state": "waiting"}) if directory in earlier else record
    counts = ("num_positions", "num_bytes", "seconds", "flops")
    return record.model_copy(update={name: getattr(manifest, name) for name in counts})


def _record(trial: Trial, output: Path, earlier: TrialRecord | None) -> TrialRecord:
    record = TrialRecord(
        name=trial.recipe.name,
        seed=trial.recipe.seed,
        control=trial.control,
        axes=list(trial.axes),
        note=trial.note,
        directory=os.path.relpath(trial.recipe.output, output),
        fingerprint=trial.fingerprint,
        state="done" if is_done(trial) else "waiting",
    )
    if earlier is None or (earlier.state == "done") != (record.state == "done"):
        return record
    state = earlier.state if earlier.state == "failed" else record.state
    return record.model_copy(update={"state": state, "message": earlier.message, "seconds": earlier.seconds})


class Keeper:
    """Keeps the record of a study on disk."""

    def __init__(self, study: Study, plan: StudyPlan):
        """Write the record with what is complete."""
        self.output = study.output
        self.record = planned_record(study, plan)
        self.indices = {trial.fingerprint: index for index, trial in enumerate(self.record.trials)}
        self.started: dict[str, float] = {}
        save_study(self.record, self.output)

    def state(self, trial: Trial) -> State:
        """The state of a trial."""
        return self.record.trials[self.indices[trial.fingerprint]].state

    def note_capture(self, number: int, store: SharedStore, state: State, message: str = "") -> None:
        """Record what happened to a store."""
        capture = capture_record(store, self.output, {c.directory: c for c in self.record.captures})
        captures = list(self.record.captures)
        captures[number] = capture.model_copy(update={"state": state, "message": message})
        self.record = self.record.model_copy(update={"captures": captures})
        save_study(self.record, self.output)

    def note(self, trial: Trial, event: Event) -> None:
        """Record what happened to a trial."""
        # A trial that starts again forgets how it failed.
        changes: dict[str, object] = {"state": "running", "message": "", "seconds": None}
        if event.kind == "started":
            self.started[trial.fingerprint] = time.monotonic()
        else:
            start = self.started.get(trial.fingerprint)  # a node may fail before it starts one
            seconds = None if start is None else round(time.monotonic() - start, 3)
            changes = {"state": event.kind, "message": event.text, "seconds": seconds}
        index = self.indices[trial.fingerprint]
        trials = list(self.record.trials)
        trials[index] = trials[index].model_copy(update=changes)
        self.record = self.record.model_copy(update={"trials": trials})
        save_study(self.record, self.output)


class Board:
    """A block of lines that moves on a terminal; a line per start and end of a trial elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.running: dict[str, str] = {}
        self._printed_at = 0.0
        # Transient: at the end the block leaves the terminal, and the lines printed above it stay.
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: StudyRecord, title: str, event: Event) -> None:
        """Show that a trial started, reported its status, or ended."""
        if event.kind == "said":
            self.running[title] = event.text
            if not self.live and time.monotonic() - self._printed_at >= LOG_SECONDS:
                self._print("\n".join(f"  {running}  {doing}" for running, doing in self.running.items()))
        elif event.kind == "started":
            self.running[title] = "starting"
            if not self.live:
                self._print(Text.assemble((headline(record), "dim"), f"  {title}"))
        else:
            self.running.pop(title, None)
            outcome = ("failed", "red") if event.kind == "failed" else ("done", "")
            # The last line of a traceback is its message.
            last = event.text.strip().splitlines()[-1:] or [""]
            self._print(Text.assemble(outcome, f"  {title}  {last[0]}".rstrip()))
        if self.live:
            lines = [Spinner("dots", text=Text(f"{running}: {doing}")) for running, doing in self.running.items()]
            self.live.update(Group(Text(headline(record), style="bold"), *lines))

    def _print(self, text: str | Text) -> None:
        self._printed_at = time.monotonic()
        self.console.print(text, soft_wrap=True, highlight=False)


def headline(record: StudyRecord) -> str:
    """`3 of 12 done, 1 failed, about 8 min left`."""
    counts = [f"{len(record.of_state('done'))} of {len(record.trials)} done"]
    failed = len(record.of_state("failed"))
    counts += [f"{failed} failed"] if failed else []
    remaining = seconds_left(record)
    counts += [f"about {duration(remaining)} left"] if remaining else []
    return ", ".join(counts)


def seconds_left(record: StudyRecord) -> float | None:
    """Time left, if each remaining trial takes as long as complete ones of its condition, or else of all conditions.

    Divided by the number of trials that run at the same time; None before the first trial is complete.
    """
    # By condition: cuts differ in time by design, seeds do not.
    took: dict[str, list[float]] = {}
    for trial in record.of_state("done"):
        if trial.seconds is not None and trial.control != "before":
            took.setdefault(trial.name, []).append(trial.seconds)
    all_seconds = [seconds for of_name in took.values() for seconds in of_name]
    if not all_seconds:
        return None
    to_come = [*record.of_state("running"), *record.of_state("waiting")]
    total = sum(fmean(took.get(trial.name, all_seconds)) for trial in to_come)
    # Trials at a time share the wall clock.
    return total / max(1, len(record.of_state("running")))


def trials_block(record: StudyRecord) -> Block:
    """Every trial with its state, condition by condition."""
    # Seeds of one condition share a row.
    groups: dict[tuple[str, str | None], list[TrialRecord]] = {}
    for trial in record.trials:
        groups.setdefault((trial.name, trial.control), []).append(trial)
    rows: list[tuple[str, ...]] = []
    for trials in groups.values():
        first = trials[0]
        states = [trial.state for trial in trials]
        done, failed = states.count("done"), states.count("failed")
        seeds = "" if first.title == first.name else ", ".join(str(trial.seed) for trial in trials)
        notes = dict.fromkeys(trial.note for trial in trials if trial.note)
        numbers = (str(number) if number else "" for number in (done, failed, len(states) - done - failed))
        rows.append((first.name, seeds, first.control or "", "; ".join(notes), *numbers))
    header = ("trial", "seeds", "control", "note", "done", "failed", "to do")
    return Block(f"{record.name}: {headline(record)}", header, tuple(rows), num_text=4)
