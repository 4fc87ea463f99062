"""What each condition is compared with: the uncut student, the base it began from, its controls.

All of it is found from the recipes; a run's name and place decide nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from leadspan.study.compare.conditions import LENGTH, Condition, flat, has_teacher, num_differing

_TEACHER = ("teacher", "targets", "loss.kl_weight")


def find_references(conditions: Sequence[Condition]) -> dict[str, Condition | None]:
    """The uncut student that each condition is compared with, by the condition's name.

    A candidate is trained on uncut traces, is no control, and has learnt from a teacher, unless no run at all has one:
    what cross-entropy alone, or a run of another length, reaches is no yardstick of a distillation. A student is
    compared with a candidate of the same starting weights, among several with the one whose recipe differs in the
    fewest settings (the first of equals). A candidate that no cut is compared with is no yardstick either, and is
    compared like any other student; where there is no cut at all, the first candidate stays one. A base is compared
    with the uncut student that began from it, a teacher with none.
    """
    students = [found for found in conditions if found.role == "student"]
    flats = {found.name: flat(found.recipe) for found in students}
    fulls = [found for found in students if found.is_full and found.control is None]
    if any(has_teacher(found.recipe) for found in students):
        fulls = [found for found in fulls if has_teacher(found.recipe)]
    found: dict[str, Condition | None] = {}
    for weights in dict.fromkeys(_student(student.recipe) for student in students):
        alike = [student for student in students if _student(student.recipe) == weights]
        own = [full for full in fulls if any(full is one for one in alike)]
        wanted = {_nearest(one, own, flats).name for one in alike if own and not one.is_full}
        used = [full for full in own if full.name in wanted] or own[:1]
        for student in alike:
            is_one = any(student is full for full in used)
            nearest = _nearest(student, used, flats) if used else None
            found[student.name] = student if is_one else nearest
    for condition in conditions:
        if condition.role != "student":
            is_base = condition.role == "base"
            of_base = (full for full in fulls if is_base and base_of(full, conditions) is condition)
            found[condition.name] = next((full for full in of_base if found[full.name] is full), None)
    return found


def base_of(condition: Condition, conditions: Sequence[Condition]) -> Condition | None:
    """The starting weights of a student, evaluated: those of its recipe, or those a run of the role `base` left."""
    bases = [found for found in conditions if found.role == "base"]
    for base in bases:
        started_from = (condition.recipe.get("student") or {}).get("path")
        left = [f"{run.recipe['output']}/student" for run in base.runs if "output" in run.recipe]
        if started_from in left or _student(base.recipe) == _student(condition.recipe):
            return base
    students = {_student(found.recipe) for found in conditions if found.role == "student"}
    return bases[0] if len(bases) == len(students) == 1 else None


def counterparts(condition: Condition, conditions: Sequence[Condition]) -> list[tuple[str, Condition]]:
    """The controls of a policy among the conditions: the same recipe but for what the control is about."""
    own = flat(condition.recipe)
    window = flat({**condition.recipe, "cut": _windowed(condition.recipe.get("cut"))})
    wanted: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "equal_tokens": (own, LENGTH),
        "equal_steps": (own, LENGTH),
        **({"random_window": (window, ())} if window != own else {}),
        "cross_entropy": (own, _TEACHER),
    }
    return [
        (control, other)
        for control, (settings, ignored) in wanted.items()
        for other in conditions
        if other is not condition and other.role == "student" and _serves_as(other, control, condition)
        if num_differing(settings, flat(other.recipe), ignored) == 0
    ]


def _nearest(condition: Condition, fulls: Sequence[Condition], flats: Mapping[str, dict[str, Any]]) -> Condition:
    return min(fulls, key=lambda full: num_differing(flats[condition.name], flats[full.name]))


def _serves_as(other: Condition, control: str, condition: Condition) -> bool:
    """Whether a condition is the control, or one of the axes that amounts to it."""
    if other.control is not None or control.startswith("equal"):
        return other.control == control
    return control == "random_window" or (has_teacher(condition.recipe) and not has_teacher(other.recipe))


def _windowed(cut: Any) -> Any:
    """The `random_window` that stands against a lead, as a recipe holds it."""
    if not isinstance(cut, dict):
        return cut
    if cut.get("kind") == "lead":
        return {"kind": "random_window", **{key: cut[key] for key in ("p", "stop") if key in cut}}
    return {**cut, "policy": _windowed(cut.get("policy"))} if cut.get("kind") == "mix" else cut


def _student(recipe: Mapping[str, Any]) -> str:
    """The starting weights, whatever the seed of those that are drawn."""
    settings = {key: value for key, value in (recipe.get("student") or {}).items() if key != "seed"}
    return json.dumps(settings, sort_keys=True)
