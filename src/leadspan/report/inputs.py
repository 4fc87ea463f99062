"""The runs of a report: read from disk with studies and audits, grouped by condition, and what each is compared with.

Which runs are seeds of one condition and what it is compared with is read from the recipes that the runs carry:
renaming a run or moving its directory changes no number.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leadspan.audit.findings import AUDIT_FILE, AuditResult, load_audit
from leadspan.data.truncation import Full, equal_window
from leadspan.errors import RunError
from leadspan.evaluation.result import EvalResult
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe, TrialId
from leadspan.results import RUN_FILE, RunResult, load_run
from leadspan.settings import flat_settings, without
from leadspan.study.record import STUDY_FILE, StudyRecord, TrialRecord, load_study

_NOT_COMPARED = ("name", "seed", "output", "plan", "capture", "student.seed", "trial", "push")
"""Settings in which the seeds of one condition may differ: they change the student only by chance, or not at all."""
OF_LENGTH = ("equal_tokens", "equal_steps")
LENGTH = ("training.steps", "training.epochs", "data.num_train")
"""Settings that the controls of equal length choose separately for each seed."""


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
    """

    label: str
    policy: str
    run: RunResult
    directory: Path

    def samples_of(self, result: EvalResult) -> Path | None:
        """Samples of one of its results; None where they are missing: they are large, and often not copied along."""
        path = self.directory / (result.samples_file or "")
        # By `os`: a path that cannot be looked at, too, is missing.
        return path if result.samples_file is not None and os.path.isfile(path) else None


def _stored_at(path: Path) -> ReportInputs:
    """The runs of a path: the complete trials of a study, the run in it, or those one level below."""
    study: StudyRecord | None = None
    trials: dict[Path, TrialRecord | None]
    if (path / STUDY_FILE).exists():
        try:
            study = load_study(path)
        except RunError as error:
            return ReportInputs((), (), refused=(str(error),))
        trials = {path / trial.directory: trial for trial in study.of_state("done")}
    elif (path / RUN_FILE).exists():
        trials = {path: None}
    else:
        # Sorted, because the order of a directory differs between machines.
        trials = {file.parent: None for file in sorted(path.glob(f"*/{RUN_FILE}"))}
    runs, faults = dict[Path, RunResult](), dict[Path, str]()
    for directory, trial in trials.items():
        try:
            run = load_run(directory)
        # One damaged run does not take the others with it.
        except RunError as error:
            faults[directory] = str(error)
            continue
        if study and trial:
            # The record has the last word on identity and price: a study that was changed may have renamed a condition.
            changes = {"trial": TrialId(study=study.name, axes=trial.axes, control=trial.control)}
            changes |= {"plan": trial.plan} if trial.plan else {}
            recipe = run.recipe and run.recipe.model_copy(update=changes)
            run = run.model_copy(update={"name": trial.name, "control": trial.control, "recipe": recipe})
        runs[directory] = run
    studies: list[StudyRecord] = []
    if study:
        lost = {"state": "waiting", "message": "its run cannot be read, so a study would run it again"}
        known = [trial.model_copy(update=lost) if path / trial.directory in faults else trial for trial in study.trials]
        studies.append(study.model_copy(update={"trials": known}))
    return ReportInputs(tuple(runs.values()), tuple(runs), studies=tuple(studies), refused=tuple(faults.values()))


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
    # Keyed by the resolved path: a study and one of its trials may both be given, and the study's record counts.
    runs: dict[Path, tuple[Path, RunResult]] = {}
    for at in stored.values():
        for directory, run in zip(at.directories, at.runs, strict=True):
            if at.studies or directory.resolve() not in runs:
                runs[directory.resolve()] = directory, run
    refused = list(dict.fromkeys(reason for at in stored.values() for reason in at.refused))
    missing = [path for path in stored if not path.exists()]
    if missing or not runs:
        if refused and not missing:
            raise RunError("\n".join(refused))
        path = [*missing, *stored][0]
        for study in stored[path].studies:
            raise RunError(f"{path}: none of the {len(study.trials)} trials of the study is complete; run the study")
        what = "no such directory" if missing else f"no {RUN_FILE} in it or one level below"
        raise RunError(f"{path}: {what}; give a run directory or its parent")
    loaded = {path.resolve(): load_audit(path) for path in audits}
    directories = tuple(directory for directory, _ in runs.values())
    for path in (directory / AUDIT_FILE for directory in (*stored, *directories)):
        if path.exists() and path.resolve() not in loaded:
            try:
                loaded[path.resolve()] = load_audit(path)
            except RunError as error:
                refused.append(str(error))
    return ReportInputs(
        runs=tuple(run for _, run in runs.values()),
        directories=directories,
        studies=tuple(study for at in stored.values() for study in at.studies),
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
    return [NamedRun(*names[id(run)], run, at) for run, at in zip(inputs.runs, inputs.directories, strict=True)]


@dataclass(frozen=True, slots=True)
class Condition:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: Unique among the conditions.
        runs: One for each seed, in the order of the seeds.
        control: Which control it is: what its study recorded, else `base` or `teacher` by its role, else None.
    """

    name: str
    runs: tuple[RunResult, ...]
    control: str | None

    @property
    def first(self) -> RunResult:
        """The run of its first seed, whose role and recipe are those of all."""
        return self.runs[0]

    @property
    def has_teacher(self) -> bool:
        """Whether its students learnt from a teacher's targets."""
        return self.first.recipe is not None and self.first.recipe.has_teacher

    @property
    def start(self) -> str:
        """The starting weights; for randomly initialised ones without their seed."""
        return self.first.start.model_dump_json(exclude={"seed"}) if self.first.start else ""

    @property
    def is_full(self) -> bool:
        """Whether its students were trained on uncut traces, and on no rollouts of theirs."""
        has_rollouts = self.first.recipe is not None and self.first.recipe.rollout is not None
        return isinstance(self.first.policy, Full) and not has_rollouts

    def labels(self) -> list[str]:
        """A label for each run: the condition, with the seed where it has several."""
        return [f"{self.name} (seed {run.seed})" for run in self.runs] if len(self.runs) > 1 else [self.name]


def find_conditions(runs: Sequence[RunResult]) -> list[Condition]:
    """Group runs by their recipes, in the order in which they first appear.

    Two runs of one recipe with the same seed are separate conditions, named apart where their names differ.
    """
    keys: list[str] = []
    controls: dict[str, str | None] = {}
    for run in runs:
        control = run.control or (run.role if run.role != "student" else None)
        # Such a control trains as long as the uncut run of its seed does, which differs a little from seed to seed.
        settings = without(flat(run.recipe), LENGTH if control in OF_LENGTH else ())
        # A model that was not trained here is known by its weights: two of one name are no seeds of each other.
        weights = run.evaluations[0].weights_hash if run.recipe is None and run.evaluations else None
        keys.append(json.dumps([run.role, control, run.label, weights, settings], sort_keys=True))
        controls[keys[-1]] = control
    num_runs = Counter((key, run.seed) for key, run in zip(keys, runs, strict=True))
    repeated_keys = {key for (key, _), number in num_runs.items() if number > 1}
    groups: dict[tuple[str, str, int], list[RunResult]] = {}
    repeats: Counter[tuple[str, str, int]] = Counter()
    for key, run in zip(keys, runs, strict=True):
        # A recipe that was run twice with one seed: the names may say what the recipes do not.
        name = run.name if key in repeated_keys else ""
        number = repeats[key, name, run.seed]
        repeats[key, name, run.seed] += 1
        groups.setdefault((key, name, number), []).append(run)
    # By seed, since models with equally many runs are paired run by run.
    ordered = [tuple(sorted(group, key=lambda run: run.seed)) for group in groups.values()]
    named = zip(_names(ordered), ordered, groups, strict=True)
    return [Condition(name, group, controls[key]) for name, group, (key, _, _) in named]


def _names(groups: Sequence[tuple[RunResult, ...]]) -> list[str]:
    """The name that a study gave the trial; else the label, with the run's name where conditions share the label.

    Where they share that too, a single run has its directory's name, and others are numbered.
    """
    shared = Counter(runs[0].label for runs in groups)
    names: list[str] = []
    for runs in groups:
        name, label = runs[0].name, runs[0].label
        # A study gives all seeds of a condition one name; runs outside a study are named one by one.
        are_trials = all(run.control is not None or (run.recipe and run.recipe.trial) is not None for run in runs)
        is_condition = are_trials and len({run.name for run in runs}) == 1
        # A run's name that begins with the label says all that the label says.
        full_name = name if is_condition or name.startswith(label) else f"{label} ({name})"
        names.append(full_name if is_condition or shared[label] > 1 else label)
    recipes = [run.recipe if not more else None for run, *more in groups]
    in_directories = [f"{name} in {r.output.name}" if r else name for name, r in zip(names, recipes, strict=True)]
    return [
        name if names.count(name) == 1 else directory if in_directories.count(directory) == 1
        else f"{name} #{names[: index + 1].count(name)}"
        for index, (name, directory) in enumerate(zip(names, in_directories, strict=True))
    ]  # fmt: skip


def flat(recipe: Recipe | None) -> dict[str, Any]:
    """Dotted setting to value, without those in which the seeds of a condition may differ; empty without a recipe."""
    return without(flat_settings(recipe), _NOT_COMPARED) if recipe else {}


def num_differing(first: Mapping[str, Any], second: Mapping[str, Any], ignored: Sequence[str] = ()) -> int:
    """The number of settings in which two flat recipes differ, not counting the ignored ones."""
    # A setting that one of them lacks differs too, unless the other has null there.
    first, second = without(first, ignored), without(second, ignored)
    return sum(first.get(key) != second.get(key) for key in first.keys() | second.keys())


def find_references(conditions: Sequence[Condition]) -> dict[str, Condition | None]:
    """The uncut student that each condition is compared with, by the condition's name.

    A candidate is trained on uncut traces or, where no run is, on rollouts that no horizon ends, and is no control: a
    run of another length is no baseline. A student is compared with a candidate of the same starting weights, and one
    that has learnt from a teacher only with another such: cross-entropy alone is no baseline for a distillation. Among
    several it is the one whose recipe differs in the fewest settings (the first of equals). A candidate that no cut is
    compared with is no baseline either, and is compared like any other student; where there is no cut at all, the first
    candidate stays the baseline. A base is compared with the uncut student that began from it, a teacher with none.
    """
    students = [condition for condition in conditions if condition.first.role == "student"]
    settings = {student.name: flat(student.first.recipe) for student in students}
    policies = [student for student in students if student.control is None]
    rollouts = [(student, student.first.recipe and student.first.recipe.rollout) for student in policies]
    fulls = [student for student in policies if student.is_full]
    fulls = fulls or [student for student, rollout in rollouts if rollout and rollout.is_whole]

    def nearest(condition: Condition, candidates: Sequence[Condition]) -> Condition | None:
        allowed = [full for full in candidates if full.has_teacher or not condition.has_teacher]
        return min(allowed, key=lambda full: num_differing(settings[condition.name], settings[full.name]), default=None)

    references: dict[str, Condition | None] = {}
    # Students of other starting weights are other students, whatever their recipes share.
    for weights in dict.fromkeys(student.start for student in students):
        siblings = [student for student in students if student.start == weights]
        candidates = [full for full in fulls if full.start == weights]
        compared = [nearest(student, candidates) for student in siblings if not student.is_full]
        baselines = [full for full in candidates if full in compared] or candidates[:1]
        for student in siblings:
            references[student.name] = student if student in baselines else nearest(student, baselines)
    for condition in conditions:
        if condition.first.role != "student":
            began = (full for full in fulls if base_of(full, conditions) is condition)
            references[condition.name] = next((full for full in began if references[full.name] is full), None)
    return references


def base_of(condition: Condition, conditions: Sequence[Condition]) -> Condition | None:
    """The evaluated starting weights of a student: those that its recipe names, or that a run of role `base` wrote."""
    bases = [base for base in conditions if base.first.role == "base"]
    start = condition.first.start
    for base in bases:
        written = [str(run.recipe.student_directory) for run in base.runs if run.recipe]
        if base.start == condition.start or (isinstance(start, Pretrained) and start.path in written):
            return base
    # A lone base belongs to all students where all began from the same weights, whatever their path.
    starts = {student.start for student in conditions if student.first.role == "student"}
    return bases[0] if len(bases) == len(starts) == 1 else None


def counterparts(condition: Condition, conditions: Sequence[Condition]) -> list[tuple[str, Condition]]:
    """The controls of a policy among the conditions: the same recipe except for what the control changes."""
    recipe = condition.first.recipe
    if recipe is None or condition.first.role != "student" or condition.control is not None or condition.is_full:
        return []
    settings, window = flat(recipe), equal_window(recipe.cut)
    # What the recipe of each control looks like, and the settings that the control changes.
    controls: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = dict.fromkeys(OF_LENGTH, (settings, LENGTH))
    if window is not None:
        controls["random_window"] = flat(recipe.model_copy(update={"cut": window})), ()
    controls["cross_entropy"] = settings, ("teacher", "targets", "loss.kl_weight")
    pairs: list[tuple[str, Condition]] = []
    for control, (expected, ignored) in controls.items():
        for candidate in (other for other in conditions if other is not condition and other.first.role == "student"):
            is_control = candidate.control == control
            # A point of the study's axes may be the same as one of these controls, without its name.
            if candidate.control is None and control not in OF_LENGTH:
                is_control = control == "random_window" or (condition.has_teacher and not candidate.has_teacher)
            if is_control and num_differing(expected, flat(candidate.first.recipe), ignored) == 0:
                pairs.append((control, candidate))
    return pairs
