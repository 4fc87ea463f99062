"""A study from start to end: plan the trials, skip what is complete, run the rest, keep the record.

Complete is a trial whose run directory holds a finished run of exactly its recipe. The directory's name ends in the
fingerprint of settings and data, so a changed study makes new trials and reuses the others. A failed trial is kept in
the record, does not stop the others, and is tried again from its last checkpoint when the study is run again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from leadspan.errors import RunError
from leadspan.results import RUN_FILE, load_run
from leadspan.study.board import Board
from leadspan.study.config import LocalExecutor, Study
from leadspan.study.controls import NEED_A_PLAN, Planner, controls
from leadspan.study.fingerprint import Fingerprints
from leadspan.study.record import State, StudyRecord, TrialRecord, load_study, save_study
from leadspan.study.sweep import Event, run_local
from leadspan.study.trials import Trial, conditions, load_base, load_before, over_seeds, placed


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study will run.

    Attributes:
        before: Runs that come first, one after the other.
        trials: Conditions and controls, seed by seed.
        notes: Controls that could not be made, and why.
    """

    before: list[Trial]
    trials: list[Trial]
    notes: list[str] = field(default_factory=list)


def plan_study(study: Study, place: Path) -> StudyPlan:
    """Resolve all trials of a study.

    Controls of equal length are planned on the data, which may need the tokenizer of a student that is trained first:
    they are left to a note until the runs that come first are complete.

    Args:
        study: The study.
        place: Its file, which the paths of its recipes start from.

    Raises:
        LeadspanError: A recipe cannot be read, a combination breaks a rule, or the data cannot be used.
    """
    study.check_needs()
    before = _before(study, place)
    fingerprints = Fingerprints({trial.recipe.output: trial.fingerprint for trial in before})
    base = load_base(study, place)
    varied, found = conditions(study.model_copy(update={"more_axes": []}), base), conditions(study, base)
    notes: list[str] = []
    asked = study
    if not all(is_done(trial) for trial in before):
        later = [control for control in study.controls if control in NEED_A_PLAN]
        notes += [f"{control}: planned when the runs that come first are complete" for control in later]
        asked = study.model_copy(update={"controls": [c for c in study.controls if c not in later]})
    made, missing = controls(asked, varied, Planner(), more=found[len(varied) :])
    trials = [Trial(recipe) for condition in found for recipe in over_seeds(study, condition)] + made
    different: dict[str, Trial] = {}
    for trial in trials:
        located = placed(trial, study, fingerprints)
        different.setdefault(located.fingerprint, located)
    return StudyPlan(before, sorted(different.values(), key=lambda trial: _turn(trial, study)), notes + missing)


def run_study(study: Study, place: Path, console: Console) -> StudyRecord:
    """Run what is not complete yet.

    Args:
        study: The study.
        place: Its file.
        console: Shows which trial runs, of how many, and the time left.

    Returns:
        The record as it is at the end; failed trials are in it.

    Raises:
        RunError: The study is being run already, a run that comes first failed, or the record cannot be written.
        LeadspanError: The study cannot be planned.
    """
    with _locked(study.output):
        plan = plan_study(study, place)
        keeper = _Keeper(study, plan)
        if plan.before:
            _execute(study.model_copy(update={"executor": LocalExecutor()}), plan.before, keeper, console)
            failed = [trial for trial in keeper.record.of_state("failed") if trial.control == "before"]
            if failed:
                raise RunError(f"{failed[0].name}, which the trials need, failed: {failed[0].message}")
            plan = plan_study(study, place)  # controls of equal length can be planned now
            keeper = _Keeper(study, plan)
        _execute(study, plan.trials, keeper, console)
        return keeper.record


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
    wanted = trial.recipe.model_dump(mode="json")
    differing = sorted(key for key in wanted if key not in ("output", "name") and wanted[key] != found.get(key))
    if differing:
        raise RunError(
            f"{directory}: it holds a finished run of another recipe (its {', '.join(differing)} differ); "
            "give that recipe another output, or remove the directory"
        )
    return True


def planned_record(study: Study, plan: StudyPlan) -> StudyRecord:
    """The record before anything runs: what is complete, what failed the last time, what is to be done.

    Raises:
        RunError: A run that comes first, or a trial, has a finished run of another recipe in its directory.
    """
    earlier: dict[str, TrialRecord] = {}
    with contextlib.suppress(RunError):  # what is complete is read from the run directories
        earlier = {trial.fingerprint: trial for trial in load_study(study.output).trials}
    trials = [_record(trial, study.output, earlier.get(trial.fingerprint)) for trial in [*plan.before, *plan.trials]]
    return StudyRecord(name=study.name, study=study.model_dump(mode="json"), trials=trials, notes=plan.notes)


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


def _before(study: Study, place: Path) -> list[Trial]:
    """The runs that come first; each may build on those before it."""
    trials: list[Trial] = []
    for recipe in load_before(study, place):
        made = {trial.recipe.output: trial.fingerprint for trial in trials}
        trials.append(Trial(recipe, Fingerprints(made).of(recipe), control="before"))
    return trials


def _turn(trial: Trial, study: Study) -> tuple[int, int]:
    """What trains nothing first; then seed by seed, so that an early look sees whole comparisons."""
    return (0, 0) if trial.task == "evaluate" else (1, study.seeds.index(trial.recipe.seed))


def _execute(study: Study, trials: Sequence[Trial], keeper: "_Keeper", console: Console) -> None:
    left = [trial for trial in trials if keeper.state(trial) != "done"]
    with Board(console, keeper.record) as board, contextlib.closing(_events(study, left)) as events:
        for event in events:
            trial = left[event.trial]
            if event.kind == "said":
                board.said(trial.title, event.text)
                continue
            keeper.note(trial, event)
            board.changed(keeper.record, trial.title, event.kind, event.text)


def _events(study: Study, trials: Sequence[Trial]) -> Generator[Event, None, None]:
    if not trials:
        return
    if isinstance(study.executor, LocalExecutor):
        yield from run_local(trials, study.executor)
        return
    from leadspan.study.cluster import run_on_ray

    yield from run_on_ray(trials, study.executor)


class _Keeper:
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

    def note(self, trial: Trial, event: Event) -> None:
        """Take down what happened to a trial."""
        changes: dict[str, object] = {"state": "running", "message": "", "seconds": None}
        if event.kind == "started":
            self.started[trial.fingerprint] = time.monotonic()
        else:
            seconds = time.monotonic() - self.started[trial.fingerprint]
            changes = {"state": event.kind, "message": event.text, "seconds": round(seconds, 3)}
        place = self.places[trial.fingerprint]
        trials = list(self.record.trials)
        trials[place] = trials[place].model_copy(update=changes)
        self.record = self.record.model_copy(update={"trials": trials})
        save_study(self.record, self.output)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the study's directory; the system lets go of it when the process ends, however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{directory}: another process is running this study; wait for it, or stop it") from None
        yield
