"""A study from start to end: plan the trials, skip what is complete, run the rest, keep the record.

A trial is complete when its run directory holds a finished run of exactly its recipe. The directory's name ends in the
fingerprint of settings and data, so a changed study makes new trials and reuses the others. A failed trial stays in the
record, does not stop the others, and is tried again from its last checkpoint when the study is run again.
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from leadspan.errors import LeadspanError, RunError, SettingsError
from leadspan.files import locked
from leadspan.recipe import TrialId, load_recipe
from leadspan.sources import check_sources
from leadspan.study.controls import NEED_A_PLAN, RunPlanner, controls
from leadspan.study.executors.local import run_local
from leadspan.study.record import (
    STUDY_FILE,
    Board,
    CaptureRecord,
    Event,
    State,
    StudyRecord,
    TrialRecord,
    load_study,
    save_study,
)
from leadspan.study.settings import Executor, LocalExecutor, RayExecutor, Study
from leadspan.study.trials import Fingerprints, SharedStore, Trial, conditions, is_done, load_base, over_seeds, placed
from leadspan.teacher.manifest import read_joined
from leadspan.teacher.settings import StoredTargets
from leadspan.training.result import remove_checkpoints

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


def plan_study(study: Study, study_file: Path, is_dry_run: bool = False) -> StudyPlan:
    """Resolve all trials of a study.

    Controls of equal length are planned on the data, which may need the tokenizer of a student that is trained first.
    Until the runs that come first are complete, notes stand in for these controls. Paths of recipes start from the
    study's file. A dry run accepts names of the Hub where the Hub cannot be reached.

    Raises:
        LeadspanError: A recipe cannot be read, a combination breaks a rule or has no task, or the data cannot be used.
    """
    study.check_needs()
    before = load_before(study, study_file)
    fingerprints = Fingerprints({trial.recipe.output: trial.fingerprint for trial in before})
    base = load_base(study, study_file)
    varied = conditions(study, base)
    if untested := next((trial for trial in varied if not trial.recipe.evaluation.tasks), None):
        raise SettingsError(
            f"study {study.name}: evaluation.tasks of {study.recipe} is empty ({untested.title}), so that nothing "
            "would be compared; add a task such as {benchmark: gsm8k}"
        )
    # Files must exist, unless the study itself makes them.
    recipes = [trial.recipe for trial in [*before, *varied]]
    outputs = [recipe.output.absolute() for recipe in recipes]
    outputs += [(study.store.path or study.output).absolute()] if study.store is not None else []
    sources = dict.fromkeys(source for recipe in recipes for source in recipe.sources())
    outside = [s for s in sources if not any(Path(s.name).absolute().is_relative_to(path) for path in outputs)]
    check_sources(outside, str(study_file), must_answer=not is_dry_run)
    # Controls are made for the conditions of `axes` alone; those of `more_axes` come behind them in the list.
    num_of_axes = len(conditions(study.model_copy(update={"more_axes": []}), base))
    # These are planned on what the runs that come first make.
    late: list[str] = [control for control in study.controls if control in NEED_A_PLAN]
    late += ["store"] if study.store is not None else []
    later = [] if all(is_done(trial) for trial in before) else late
    plannable = study.model_copy(update={"controls": [c for c in study.controls if c not in later]})
    control_trials, not_made = controls(plannable, varied[:num_of_axes], RunPlanner(), varied[num_of_axes:])
    trials = [trial for condition in varied for trial in over_seeds(study, condition)] + control_trials
    stores: list[SharedStore] = []
    if study.store is not None and "store" not in later:
        from leadspan.study.shared_stores import share_stores  # loads torch, for studies that have a store

        trials, stores = share_stores(study, trials, fingerprints)
    # Trials of equal fingerprint are one run; the first keeps its name, and notes for which control it also stands.
    different: dict[str, Trial] = {}
    for trial in trials:
        located = placed(trial, study, fingerprints)
        first = different.setdefault(located.fingerprint, located)
        if trial.control is not None and first.control != trial.control:
            note = f"it is the same run as {trial.recipe.name}, and is used for both"
            different[located.fingerprint] = replace(first, note="; ".join(filter(None, (first.note, note))))
    # Evaluation-only trials first, then seed by seed, so that early results compare all policies.
    ordered = sorted(
        different.values(),
        key=lambda trial: (0, 0) if trial.task == "evaluate" else (1, study.seeds.index(trial.recipe.seed)),
    )
    notes = [f"{name}: planned when the runs that come first are complete" for name in later]
    return StudyPlan(before, ordered, notes + not_made, stores)


def load_before(study: Study, study_file: Path) -> list[Trial]:
    """The runs that come first; each may build on those before it.

    Raises:
        SettingsError: A recipe cannot be read or breaks a rule.
    """
    trials: list[Trial] = []
    for first in study.before:
        recipe = load_recipe(study_file.parent / first.recipe, first.settings)
        fingerprint = Fingerprints({trial.recipe.output: trial.fingerprint for trial in trials}).of(recipe)
        identified = recipe.model_copy(update={"trial": TrialId(study=study.name, control="before"), "push": None})
        trials.append(Trial(identified, fingerprint, control="before"))
    return trials


def planned_record(study: Study, plan: StudyPlan) -> StudyRecord:
    """The record before anything runs: which trials are complete, failed the last time, or wait.

    Raises:
        RunError: A run that comes first, or a trial, has a finished run of another recipe in its directory.
    """
    earlier: dict[tuple[str, bool], TrialRecord] = {}
    captured: dict[str, CaptureRecord] = {}
    if (study.output / STUDY_FILE).exists():
        try:
            record = load_study(study.output)
            earlier = {_key(trial): trial for trial in record.trials}
            captured = {capture.directory: capture for capture in record.captures}
        except RunError as error:  # what is complete is read from the run directories
            logger.warning("%s; a run of the study sets it aside", str(error).partition(";")[0])
    trials: list[TrialRecord] = []
    for trial in [*plan.before, *plan.trials]:
        record = TrialRecord(
            name=trial.recipe.name,
            seed=trial.recipe.seed,
            control=trial.control,
            axes=list(trial.axes),
            note=trial.note,
            directory=os.path.relpath(trial.recipe.output, study.output),
            fingerprint=trial.fingerprint,
            plan=trial.recipe.plan,
            state="done" if is_done(trial) else "waiting",
        )
        before = earlier.get(_key(trial))
        if before is not None and (before.state == "done") == (record.state == "done"):
            state = before.state if before.state == "failed" else record.state
            changes = {"state": state, "message": before.message, "seconds": before.seconds}
            record = record.model_copy(update=changes)
        trials.append(record)
    captures = [capture_record(store, study.output, captured) for store in plan.stores]
    return StudyRecord(name=study.name, study=study, trials=trials, captures=captures, notes=plan.notes)


def capture_record(store: SharedStore, output: Path, earlier: Mapping[str, CaptureRecord]) -> CaptureRecord:
    """The record of a store: `waiting` until it is checked, with the counts of what it holds already.

    One that has been removed since has the counts of its earlier record, by directory relative to the study's.
    """
    directory = os.path.relpath(store.directory, output)
    record = CaptureRecord(name=store.title, directory=directory, state="waiting", num_trials=len(store.recipes))
    try:
        counted = read_joined(store.directory)
    except LeadspanError:
        counted = earlier.get(directory, record)
    counts = ("num_positions", "num_bytes", "seconds", "flops")
    return record.model_copy(update={name: getattr(counted, name) for name in counts})


def _key(trial: Trial | TrialRecord) -> tuple[str, bool]:
    # A run that comes first may have the recipe of a trial, and is another run all the same.
    return trial.fingerprint, trial.control == "before"


class Keeper:
    """Keeps the record of a study on disk."""

    def __init__(self, study: Study, plan: StudyPlan):
        """Write the record with what is complete; a file under its name that is none is renamed to `*.damaged`."""
        self.output = study.output
        self.record = planned_record(study, plan)
        try:
            load_study(study.output)
        except RunError:
            with contextlib.suppress(FileNotFoundError):
                (study.output / STUDY_FILE).rename(study.output / f"{STUDY_FILE}.damaged")
        self.indices = {_key(trial): index for index, trial in enumerate(self.record.trials)}
        self.started: dict[tuple[str, bool], float] = {}
        save_study(self.record, self.output)

    def state(self, trial: Trial) -> State:
        """The state of a trial; a capture waits until its store has been checked."""
        return "waiting" if trial.store is not None else self.record.trials[self.indices[_key(trial)]].state

    def note_capture(self, store: SharedStore, state: State, message: str = "") -> None:
        """Record what happened to a store."""
        capture = capture_record(store, self.output, {c.directory: c for c in self.record.captures})
        capture = capture.model_copy(update={"state": state, "message": message})
        captures = [capture if c.directory == capture.directory else c for c in self.record.captures]
        self.record = self.record.model_copy(update={"captures": captures})
        save_study(self.record, self.output)

    def note(self, trial: Trial, event: Event) -> None:
        """Record what happened to a trial."""
        if trial.store is not None:
            state: State = "running" if event.kind in ("started", "said") else event.kind
            self.note_capture(trial.store, state, event.text)
            return
        # A trial that starts again forgets how it failed.
        changes: dict[str, object] = {"state": "running", "message": "", "seconds": None}
        if event.kind == "started":
            self.started[_key(trial)] = time.monotonic()
        else:
            start = self.started.get(_key(trial))  # a node may fail before it starts one
            seconds = None if start is None else round(time.monotonic() - start, 3)
            changes = {"state": event.kind, "message": event.text, "seconds": seconds}
        index = self.indices[_key(trial)]
        trials = list(self.record.trials)
        trials[index] = trials[index].model_copy(update=changes)
        self.record = self.record.model_copy(update={"trials": trials})
        save_study(self.record, self.output)


def run_study(study: Study, study_file: Path, console: Console) -> StudyRecord:
    """Run the trials of a study that are not complete yet; the console shows which trial runs, and the time left.

    Returns:
        The record as it is at the end; failed trials are in it.

    Raises:
        RunError: The study is being run already, a run that comes first or a capture failed, or the record cannot be
            written.
        LeadspanError: The study cannot be planned.
    """
    refusal = "{}: another process (id {}) is running this study; wait for it, or stop it"
    with locked(study.output / ".lock", lambda holder: RunError(refusal.format(study.output, holder))):
        plan = plan_study(study, study_file)
        keeper = Keeper(study, plan)
        if plan.before:
            # One after the other on this machine: a later one may build on an earlier one's student.
            _execute(study.model_copy(update={"executor": LocalExecutor()}), plan.before, keeper, console)
            failed = [trial for trial in keeper.record.of_state("failed") if trial.control == "before"]
            if failed:
                raise RunError(f"{failed[0].name}, which the trials need, failed: {failed[0].message}")
            plan = plan_study(study, study_file)  # controls of equal length can be planned now
            keeper = Keeper(study, plan)
        # Captures run one at a time, before any trial.
        alone = study.model_copy(update={"executor": _whole_machine(study.executor)})
        for store in plan.stores:
            # Checked before the store is opened: a finished study needs no store any more.
            if all(keeper.state(trial) == "done" for trial in plan.readers(store)):
                keeper.note_capture(store, "done")
                continue
            _execute(alone, [Trial(store.recipes[0], task="capture", store=store)], keeper, console)
            directory = os.path.relpath(store.directory, study.output)
            (capture,) = (capture for capture in keeper.record.captures if capture.directory == directory)
            if capture.state == "failed":
                raise RunError(f"{capture.name}, which {capture.num_trials} trials need, failed: {capture.message}")
        _execute(study, plan.trials, keeper, console)
        return keeper.record


def _whole_machine(executor: Executor) -> Executor:
    """The executor of a capture, which may use as much as all concurrent trials together."""
    if isinstance(executor, RayExecutor):
        return executor
    number, threads = executor.trials_at_once, executor.threads_per_trial
    if not executor.gpus_per_trial:
        return executor.model_copy(update={"trials_at_once": 1, "threads_per_trial": threads and number * threads})
    # A capture runs alone, so it takes the devices of all trials at once.
    gpus = number * executor.gpus_per_trial
    return executor.model_copy(update={"trials_at_once": 1, "gpus_per_trial": gpus, "ranks_per_trial": gpus})


def _execute(study: Study, trials: Sequence[Trial], keeper: Keeper, console: Console) -> None:
    to_run = [trial for trial in trials if keeper.state(trial) != "done"]
    if not study.keep_checkpoints:
        for trial in trials:
            # A study that was killed may have left some; those of a run that was there before are the user's.
            if keeper.state(trial) == "done" and trial.control != "before":
                remove_checkpoints(trial.recipe.output)
    if not to_run:
        return
    if isinstance(study.executor, LocalExecutor):
        running = run_local(to_run, study.executor)
    else:
        from leadspan.study.executors.ray import run_on_ray

        running = run_on_ray(to_run, study.executor)
    board = Board(console, [trial.title for trial in to_run])
    with board.live or contextlib.nullcontext(), contextlib.closing(running) as events:
        for event in events:
            trial = to_run[event.trial]
            if event.kind != "said":
                keeper.note(trial, event)
            if event.kind == "done" and not study.keep_checkpoints and trial.store is None:  # a capture has none
                remove_checkpoints(trial.recipe.output)
            board.show(keeper.record, trial.title, event)
