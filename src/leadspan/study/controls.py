"""The controls of a study: what a cut must be compared with before its accuracy means anything.

A cut run differs from the uncut one in what it sees and in how much it trains. `equal_tokens` and `equal_steps` take
the second apart from the first; `random_window` asks whether it matters that the kept part is the lead; `cross_entropy`
whether the teacher does; `base` what the student could do before.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadspan.data.truncation import Full, Lead, Mix, Policy, RandomWindow
from leadspan.errors import SettingsError
from leadspan.models.config import Pretrained
from leadspan.recipe import Recipe
from leadspan.settings import Settings, validate
from leadspan.study.config import Control, Study
from leadspan.study.trials import Trial, without_teacher
from leadspan.training.config import ByTokens

if TYPE_CHECKING:
    from leadspan.inputs import PreparedData

NEED_A_PLAN: frozenset[Control] = frozenset({"equal_tokens", "equal_steps"})
"""Controls that need the data of the recipe."""
_OF_ALL: frozenset[Control] = frozenset({"base", "teacher"})


@dataclass(frozen=True, slots=True)
class Planned:
    """A run as it would be planned.

    Attributes:
        num_tokens: Tokens through the student's forward pass.
        num_steps: Optimiser steps.
        num_examples: Examples drawn, repeats counted.
        num_traces: Traces in use.
        num_available: Traces that could be in use.
    """

    num_tokens: int
    num_steps: int
    num_examples: int
    num_traces: int
    num_available: int


class Planner:
    """Plans runs; the data of the last few recipes stays prepared."""

    def __init__(self, num_kept: int = 2):
        self.num_kept = num_kept
        self._prepared: dict[str, PreparedData] = {}

    def __call__(self, recipe: Recipe) -> Planned:
        """Prepare the data of a recipe (or reuse it) and plan its run, as training would on one rank."""
        from leadspan.training.schedule import schedule

        data = self._data(recipe)
        examples, not_drawn = data.examples, data.splits.left_out.get("not drawn", 0)
        plan = schedule(recipe.training, examples.lengths, 1, recipe.seed, examples.num_stages)
        num_tokens = sum(examples.lengths[i] for batch in plan.plan for i in batch)
        num_traces, num_examples = len(data.splits.train), sum(map(len, plan.plan))
        return Planned(num_tokens, plan.num_steps, num_examples, num_traces, num_traces + not_drawn)

    def _data(self, recipe: Recipe) -> "PreparedData":
        from leadspan.inputs import prepare_data

        key = recipe.model_dump_json(include={"seed", "data", "tokenizer", "student", "cut", "supervision"})
        if key not in self._prepared:
            while len(self._prepared) >= self.num_kept:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = prepare_data(recipe)
        return self._prepared[key]


def controls(
    study: Study, conditions: Sequence[Recipe], plan: Planner, more: Sequence[Recipe] = ()
) -> tuple[list[Trial], list[str]]:
    """The control trials a study asks for, for every seed, and what could not be made of it.

    Args:
        study: The study.
        conditions: The conditions of its `axes`, at the first seed.
        plan: Plans a run, for the controls of equal length.
        more: The conditions of its `more_axes`; their students and teachers are evaluated as they are, too.

    Returns:
        Trials without a place yet, and notes.

    Raises:
        SettingsError: A control makes no sense for the recipe.
    """
    trials: list[Trial] = []
    notes: list[str] = []
    for control in study.controls:
        made = _MAKERS[control](study, [*conditions, *more] if control in _OF_ALL else conditions, plan)
        if not made:
            notes.append(f"{control}: {_NOTHING[control]}")
        trials += made
    return trials, notes


def _equal_tokens(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    return [
        trial
        for recipe in _cut_ones(conditions)
        for seed in study.seeds
        if (trial := _longer(recipe.model_copy(update={"seed": seed}), plan)) is not None
    ]


def _longer(recipe: Recipe, plan: Planner) -> Trial | None:
    """The recipe with as many traces and steps as make up the tokens of the uncut run; None where it has them."""
    goal, own = plan(_changed(recipe, cut=Full())), plan(recipe)
    wanted = math.ceil(own.num_traces * goal.num_tokens / own.num_tokens)
    if recipe.data.num_train is not None:
        num_traces = min(max(wanted, own.num_traces), own.num_available)
        recipe = _changed(recipe, data=recipe.data.model_copy(update={"num_train": num_traces}))
    else:
        num_traces = own.num_traces
    num_steps = _closest(goal.num_tokens, own, lambda steps: plan(_of_length(recipe, steps)).num_tokens)
    if num_steps == own.num_steps and num_traces == own.num_traces:
        return None
    longer = _of_length(recipe, num_steps).model_copy(update={"name": f"{recipe.name}, equal tokens"})
    note = f"{num_steps} steps on {num_traces:,} traces"
    times = plan(longer).num_examples / num_traces
    if times > 1.05 * max(1.0, own.num_examples / own.num_traces):
        all_there_are = ", which are all there are" if num_traces == own.num_available else ""
        note += f"{all_there_are}: each is seen {times:.2g} times"
    return Trial(longer, control="equal_tokens", note=note)


def _closest(goal: int, start: Planned, tokens_of: Callable[[int], int]) -> int:
    """The number of steps whose tokens come closest to the goal; tokens grow with the steps."""
    low, high = 1, max(2, start.num_steps)
    while tokens_of(high) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens_of(middle) < goal else (low, middle)
    return min((low, high), key=lambda steps: abs(tokens_of(steps) - goal))


def _equal_steps(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    trials: list[Trial] = []
    for recipe in _cut_ones(conditions):
        if recipe.training.steps is not None or not isinstance(recipe.training.batching, ByTokens):
            continue  # as many steps as the uncut run already
        for seed in study.seeds:
            own = recipe.model_copy(update={"seed": seed})
            num_steps = plan(_changed(own, cut=Full())).num_steps
            named = _of_length(own, num_steps).model_copy(update={"name": f"{recipe.name}, equal steps"})
            trials.append(Trial(named, control="equal_steps", note=f"{num_steps} steps"))
    return trials


def _random_window(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    found: dict[str, Recipe] = {}
    for recipe in conditions:
        window = _window_of(recipe.cut)
        if window is not None:
            name = re.sub(rf"{re.escape(recipe.cut.label)}( \([^)]*\))?", window.label, recipe.name, count=1)
            changed = _changed(recipe, cut=window, name=name)
            found.setdefault(changed.model_dump_json(), changed)
    known = {recipe.model_dump_json(exclude={"name"}) for recipe in conditions}
    new = [recipe for recipe in found.values() if recipe.model_dump_json(exclude={"name"}) not in known]
    return _for_seeds(study, new, "random_window")


def _window_of(policy: Policy) -> Policy | None:
    if isinstance(policy, Lead):
        return RandomWindow(p=policy.p, stop=policy.stop)
    if isinstance(policy, Mix) and isinstance(policy.policy, Lead):
        return Mix(policy=RandomWindow(p=policy.policy.p, stop=policy.policy.stop), whole_share=policy.whole_share)
    return None


def _cross_entropy(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    made: list[Recipe] = []
    for recipe in conditions:
        if recipe.teacher is None:
            continue
        values = recipe.model_dump(mode="json") | {"name": f"{recipe.name}, cross-entropy"}
        without_teacher(values)
        made.append(validate(Recipe, values, f"study {study.name}, control cross_entropy"))
    return _for_seeds(study, made, "cross_entropy")


def _base(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    return _evaluated(conditions, "base")


def _teacher(study: Study, conditions: Sequence[Recipe], plan: Planner) -> list[Trial]:
    return _evaluated([recipe for recipe in conditions if recipe.teacher is not None], "teacher")


def _evaluated(conditions: Sequence[Recipe], role: Control) -> list[Trial]:
    """Every distinct student, or teacher, evaluated without training."""
    found: dict[str, Recipe] = {}
    for recipe in conditions:
        if not recipe.evaluation.tasks:
            raise SettingsError(f"controls: {role} is evaluated only, and the recipe has no evaluation.tasks; add one")
        model = recipe.student if role == "base" else recipe.teacher
        assert model is not None, "the caller picks recipes with a teacher"
        changed = _changed(recipe, student=model, role=role, cut=Full(), name=role)
        found.setdefault(f"{model} {recipe.evaluation} {recipe.data.rendering} {recipe.tokenizer}", changed)
    if len(found) > 1:
        return [
            Trial(_changed(recipe, name=f"{role} {number}: {_model_name(recipe)}"), task="evaluate", control=role)
            for number, recipe in enumerate(found.values(), 1)
        ]
    return [Trial(recipe, task="evaluate", control=role) for recipe in found.values()]


def _model_name(recipe: Recipe) -> str:
    """The model type, or the last part of the path that tells models apart."""
    student = recipe.student
    if not isinstance(student, Pretrained):
        return str(student.config.get("model_type"))
    return student.path.removesuffix("/student").rpartition("/")[2]


def _cut_ones(conditions: Sequence[Recipe]) -> list[Recipe]:
    return [recipe for recipe in conditions if not isinstance(recipe.cut, Full)]


def _for_seeds(study: Study, recipes: Sequence[Recipe], control: Control) -> list[Trial]:
    return [Trial(_changed(recipe, seed=seed), control=control) for recipe in recipes for seed in study.seeds]


def _of_length(recipe: Recipe, num_steps: int) -> Recipe:
    return _changed(recipe, training=recipe.training.model_copy(update={"epochs": None, "steps": num_steps}))


def _changed(recipe: Recipe, **changes: Settings | str | int) -> Recipe:
    return recipe.model_copy(update=changes)


_MAKERS: dict[Control, Callable[[Study, Sequence[Recipe], Planner], list[Trial]]] = {
    "equal_tokens": _equal_tokens,
    "equal_steps": _equal_steps,
    "random_window": _random_window,
    "cross_entropy": _cross_entropy,
    "base": _base,
    "teacher": _teacher,
}
_NOTHING: dict[Control, str] = {
    "equal_tokens": "every condition trains on as many tokens as the uncut run already",
    "equal_steps": "every condition has as many optimiser steps as the uncut run already",
    "random_window": "no condition is cut by `lead`, or the windows are conditions already",
    "cross_entropy": "no condition has a teacher",
    "base": "there is no condition",
    "teacher": "no condition has a teacher",
}
