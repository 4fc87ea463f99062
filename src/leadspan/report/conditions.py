"""Which runs are seeds of one condition, their names, and what each condition is compared with.

All of it is read from the recipes that the runs carry: renaming a run or moving its directory changes no number.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leadspan.data.truncation import Full, equal_window
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe
from leadspan.results import RunResult
from leadspan.settings import flat_settings

_NOT_COMPARED = ("name", "seed", "output", "plan", "capture", "student.seed", "trial", "push")
"""Settings in which the seeds of one condition may differ: they change the student only by chance, or not at all."""
LENGTH = ("training.steps", "training.epochs", "data.num_train")
"""Settings that the controls of equal length choose separately for each seed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: Unique among the conditions.
        runs: One for each seed, in the order of the seeds.
    """

    name: str
    runs: tuple[RunResult, ...]

    @property
    def first(self) -> RunResult:
        """The run of its first seed, whose role and recipe are those of all."""
        return self.runs[0]

    @property
    def control(self) -> str | None:
        """Which control it is, see `control_of`."""
        return control_of(self.first)

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
    for run in runs:
        control = control_of(run)
        # Such a control trains as long as the uncut run of its seed does, which differs a little from seed to seed.
        settings = without(flat(run.recipe), LENGTH if control in ("equal_tokens", "equal_steps") else ())
        keys.append(json.dumps([run.role, control, run.label, settings], sort_keys=True))
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
    return [Condition(name, group) for name, group in zip(_names(ordered), ordered, strict=True)]


def control_of(run: RunResult) -> str | None:
    """Which control a run is: what its study recorded, else `base` or `teacher` by its role, else None."""
    return run.control or (run.role if run.role != "student" else None)


def _names(groups: Sequence[tuple[RunResult, ...]]) -> list[str]:
    """The name that a study gave the trial; else the label, with the run's name where conditions share the label.

    Numbered where they share that too.
    """
    shared = Counter(runs[0].label for runs in groups)
    names: list[str] = []
    for runs in groups:
        first = runs[0]
        # A study gives all seeds of a condition one name; runs outside a study are named one by one.
        are_trials = all(run.control is not None or (run.recipe and run.recipe.trial) is not None for run in runs)
        is_condition = are_trials and len({run.name for run in runs}) == 1
        # A run's name that begins with the label says all that the label says.
        says_all = is_condition or first.name.startswith(first.label)
        full_name = first.name if says_all else f"{first.label} ({first.name})"
        names.append(full_name if is_condition or shared[first.label] > 1 else first.label)
    repeated, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = f"{name} #{seen[name]}" if repeated[name] > 1 else name
    return names


def flat(recipe: Recipe | None) -> dict[str, Any]:
    """Dotted setting to value, without those in which the seeds of a condition may differ; empty without a recipe."""
    return without(flat_settings(recipe), _NOT_COMPARED) if recipe else {}


def without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """All settings except those named and those nested in them."""
    return {
        key: value
        for key, value in settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in names)
    }


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
        baselines = [full for full in candidates if any(full is nearby for nearby in compared)] or candidates[:1]
        for student in siblings:
            is_baseline = any(student is full for full in baselines)
            references[student.name] = student if is_baseline else nearest(student, baselines)
    for condition in conditions:
        if condition.first.role != "student":
            is_base = condition.first.role == "base"
            of_base = (full for full in fulls if is_base and base_of(full, conditions) is condition)
            references[condition.name] = next((full for full in of_base if references[full.name] is full), None)
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
    controls: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "equal_tokens": (settings, LENGTH),
        "equal_steps": (settings, LENGTH),
    }
    if window is not None:
        controls["random_window"] = flat(recipe.model_copy(update={"cut": window})), ()
    controls["cross_entropy"] = settings, ("teacher", "targets", "loss.kl_weight")
    pairs: list[tuple[str, Condition]] = []
    for control, (expected, ignored) in controls.items():
        for candidate in conditions:
            if candidate is condition or candidate.first.role != "student":
                continue
            is_control = candidate.control == control
            # A point of the study's axes may be the same as one of these controls, without its name.
            if candidate.control is None and control not in ("equal_tokens", "equal_steps"):
                is_control = control == "random_window" or (condition.has_teacher and not candidate.has_teacher)
            if is_control and num_differing(expected, flat(candidate.first.recipe), ignored) == 0:
                pairs.append((control, candidate))
    return pairs
