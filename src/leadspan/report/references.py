"""What each condition is compared with: the uncut student, the base that it began from, and its controls.

The recipes alone decide this; the name and the directory of a run have no influence.
"""

from collections.abc import Sequence
from typing import Any

from leadspan.data.truncation import equal_window
from leadspan.models.settings import Pretrained
from leadspan.report.conditions import LENGTH, Condition, flat, num_differing

_TEACHER = ("teacher", "targets", "loss.kl_weight")


def find_references(conditions: Sequence[Condition]) -> dict[str, Condition | None]:
    """The uncut student that each condition is compared with, by the condition's name.

    A candidate is trained on uncut traces or, where no run is, on rollouts that no horizon ends. It is no control, and
    has learnt from a teacher, unless no run at all has one: cross-entropy alone, or a run of another length, is no
    baseline for a distillation. A student is compared with a candidate of the same starting weights; among several,
    with the one whose recipe differs in the fewest settings (the first of equals). A candidate that no cut is compared
    with is no baseline either, and is compared like any other student; where there is no cut at all, the first
    candidate stays the baseline. A base is compared with the uncut student that began from it, a teacher with none.
    """
    students = [condition for condition in conditions if condition.role == "student"]
    settings = {student.name: flat(student.recipe) for student in students}
    fulls = [student for student in students if student.is_full and student.control is None]
    fulls = fulls or [student for student in students if student.has_whole_rollouts and student.control is None]
    # Cross-entropy alone is the baseline of a study in which no run has a teacher.
    if any(student.has_teacher for student in students):
        fulls = [full for full in fulls if full.has_teacher]

    def nearest(condition: Condition, candidates: Sequence[Condition]) -> Condition:
        return min(candidates, key=lambda full: num_differing(settings[condition.name], settings[full.name]))

    references: dict[str, Condition | None] = {}
    # Students of other starting weights are other students, whatever their recipes share.
    for weights in dict.fromkeys(student.start for student in students):
        siblings = [student for student in students if student.start == weights]
        candidates = [full for full in fulls if full.start == weights]
        names = {nearest(student, candidates).name for student in siblings if candidates and not student.is_full}
        baselines = [full for full in candidates if full.name in names] or candidates[:1]
        for student in siblings:
            is_baseline = any(student is full for full in baselines)
            references[student.name] = student if is_baseline else nearest(student, baselines) if baselines else None
    for condition in conditions:
        if condition.role != "student":
            is_base = condition.role == "base"
            of_base = (full for full in fulls if is_base and base_of(full, conditions) is condition)
            references[condition.name] = next((full for full in of_base if references[full.name] is full), None)
    return references


def base_of(condition: Condition, conditions: Sequence[Condition]) -> Condition | None:
    """The evaluated starting weights of a student: those that its recipe names, or that a run of role `base` wrote."""
    bases = [base for base in conditions if base.role == "base"]
    start = condition.runs[0].start
    for base in bases:
        written = [str(run.recipe.student_directory) for run in base.runs if run.recipe]
        if base.start == condition.start or (isinstance(start, Pretrained) and start.path in written):
            return base
    # A lone base belongs to all students where all began from the same weights, whatever their path.
    starts = {student.start for student in conditions if student.role == "student"}
    return bases[0] if len(bases) == len(starts) == 1 else None


def counterparts(condition: Condition, conditions: Sequence[Condition]) -> list[tuple[str, Condition]]:
    """The controls of a policy among the conditions: the same recipe except for what the control changes."""
    recipe = condition.recipe
    if recipe is None or condition.role != "student" or condition.control is not None or condition.is_full:
        return []
    settings, window = flat(recipe), equal_window(recipe.cut)
    # What the recipe of each control looks like, and the settings that the control changes.
    controls: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "equal_tokens": (settings, LENGTH),
        "equal_steps": (settings, LENGTH),
    }
    if window is not None:
        controls["random_window"] = flat(recipe.model_copy(update={"cut": window})), ()
    controls["cross_entropy"] = settings, _TEACHER
    pairs: list[tuple[str, Condition]] = []
    others = [candidate for candidate in conditions if candidate is not condition and candidate.role == "student"]
    for control, (expected, ignored) in controls.items():
        for candidate in others:
            if candidate.control is not None or control in ("equal_tokens", "equal_steps"):
                is_control = candidate.control == control
            else:
                # A point of the study's axes may be the same as the control, without its name.
                is_control = control == "random_window" or (condition.has_teacher and not candidate.has_teacher)
            if is_control and num_differing(expected, flat(candidate.recipe), ignored) == 0:
                pairs.append((control, candidate))
    return pairs
