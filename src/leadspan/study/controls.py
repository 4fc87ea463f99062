"""The controls of a study: what a cut must be compared with before its accuracy means anything.

A cut run differs from the uncut one in what it sees and in how much it trains. `equal_tokens` and `equal_steps` take
the second apart from the first; `random_window` asks whether it matters that the kept part is the lead; `cross_entropy`
whether the teacher does; `base` what the student could do before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from leadspan.data.truncation import Full, equal_window
from leadspan.errors import SettingsError
from leadspan.models.settings import Pretrained
from leadspan.recipe import Control, Recipe
from leadspan.settings import validate
from leadspan.study.settings import Study
from leadspan.study.trials import Trial, named, over_seeds, without_teacher
from leadspan.training.settings import ByTokens

if TYPE_CHECKING:
    from leadspan.inputs import PreparedData

NEED_A_PLAN: frozenset[Control] = frozenset({"equal_tokens", "equal_steps"})
"""Controls that need the data of the recipe."""
_OF_ALL: frozenset[Control] = frozenset({"base", "teacher"})
# Recipes whose data stay in memory: a cut and the uncut run that it is compared with.
_NUM_PREPARED = 2


@dataclass(frozen=True, slots=True)
class PlannedRun:
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


class RunPlanner:
    """Predicts the steps and tokens of runs; keeps the prepared data of recent recipes in memory."""

    def __init__(self) -> None:
        self._prepared: dict[str, PreparedData] = {}

    def __call__(self, recipe: Recipe) -> PlannedRun:
        """Prepare the data of a recipe (or reuse it) and plan its run, as training would on one rank."""
        from leadspan.inputs import prepare_data
        from leadspan.training.steps import plan_steps

        key = recipe.model_dump_json(include={"seed", "data", "tokenizer", "student", "cut", "supervision"})
        if key not in self._prepared:
            # Dictionaries keep their order, so the first key is the oldest.
            while len(self._prepared) >= _NUM_PREPARED:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = prepare_data(recipe)
        data = self._prepared[key]
        examples, not_drawn = data.examples, data.splits.left_out.get("not drawn", 0)
        plan = plan_steps(recipe.training, examples.lengths, 1, recipe.seed, examples.num_stages)
        num_tokens = sum(examples.lengths[i] for batch in plan.plan for i in batch)
        num_traces, num_examples = len(data.splits.train), sum(map(len, plan.plan))
        return PlannedRun(num_tokens, plan.num_steps, num_examples, num_traces, num_traces + not_drawn)


def controls(
    study: Study, conditions: Sequence[Trial], plan: RunPlanner, more: Sequence[Trial] = ()
) -> tuple[list[Trial], list[str]]:
    """The control trials of a study for every seed, without a directory yet, and notes on controls that yield none.

    Args:
        study: The study.
        conditions: The conditions of its `axes`, at the first seed.
        plan: Plans a run, for the controls of equal length.
        more: The conditions of its `more_axes`; their students and teachers are evaluated as they are, too.

    Raises:
        SettingsError: A control makes no sense for the recipe.
    """
    trials: list[Trial] = []
    notes: list[str] = []
    for control in study.controls:
        make, why_none = _MAKERS[control]
        control_trials = make(study, [*conditions, *more] if control in _OF_ALL else conditions, plan)
        if not control_trials:
            notes.append(f"{control}: {why_none}")
        trials += control_trials
    return trials, notes


def _equal_tokens(study: Study, conditions: Sequence[Trial], plan: RunPlanner) -> list[Trial]:
    """Each cut with traces and steps for as many tokens as the uncut run; none where it has them already."""
    trials: list[Trial] = []
    # Rollouts are as long as they are, whatever the cut of the traces.
    on_traces = [condition for condition in conditions if condition.recipe.rollout is None]
    cuts = (condition for condition in on_traces if not isinstance(condition.recipe.cut, Full))
    for trial in (seeded for condition in cuts for seeded in over_seeds(study, condition)):
        recipe = trial.recipe
        goal, planned = plan(recipe.model_copy(update={"cut": Full()})), plan(recipe)
        num_traces = planned.num_traces
        # More traces first, more steps then: a longer run on the same traces would be a different question.
        if recipe.data.num_train is not None:
            num_needed = math.ceil(planned.num_traces * goal.num_tokens / planned.num_tokens)
            num_traces = min(max(num_needed, planned.num_traces), planned.num_available)
            data = recipe.data.model_copy(update={"num_train": num_traces})
            recipe = recipe.model_copy(update={"data": data})
        num_steps = _closest(
            goal.num_tokens, planned, lambda steps, r=recipe: plan(_of_length(r, steps, "equal tokens")).num_tokens
        )
        if num_steps == planned.num_steps and num_traces == planned.num_traces:
            continue
        longer = _of_length(recipe, num_steps, "equal tokens")
        note = f"{num_steps} steps on {num_traces:,} traces"
        times = plan(longer).num_examples / num_traces
        # 5 % more repeats than in the cut run itself are not worth a note.
        if times > 1.05 * max(1.0, planned.num_examples / planned.num_traces):
            all_there_are = ", which are all there are" if num_traces == planned.num_available else ""
            note += f"{all_there_are}: each is seen {times:.2g} times"
        trials.append(replace(trial, recipe=longer, control="equal_tokens", note=note))
    return trials


def _closest(goal: int, start: PlannedRun, tokens_of: Callable[[int], int]) -> int:
    """The number of steps whose tokens come closest to the goal; assumes that more steps have more tokens."""
    low, high = 1, max(2, start.num_steps)
    # Doubling, then bisection: a plan of a large data set takes seconds, and its length is not known.
    while tokens_of(high) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens_of(middle) < goal else (low, middle)
    return min((low, high), key=lambda steps: abs(tokens_of(steps) - goal))


def _equal_steps(study: Study, conditions: Sequence[Trial], plan: RunPlanner) -> list[Trial]:
    trials: list[Trial] = []
    for condition in conditions:
        training = condition.recipe.training
        # Batches of so many examples, and a number of steps, give every cut as many steps as the uncut run.
        if isinstance(condition.recipe.cut, Full) or training.steps or not isinstance(training.batching, ByTokens):
            continue
        for seeded in over_seeds(study, condition):
            num_steps = plan(seeded.recipe.model_copy(update={"cut": Full()})).num_steps
            longer = _of_length(seeded.recipe, num_steps, "equal steps")
            trials.append(replace(seeded, recipe=longer, control="equal_steps", note=f"{num_steps} steps"))
    return trials


def _random_window(study: Study, conditions: Sequence[Trial], plan: RunPlanner) -> list[Trial]:
    windows: dict[str, Trial] = {}
    for condition in conditions:
        window = equal_window(condition.recipe.cut)
        if window is not None and condition.recipe.has_traces:
            changed = condition.recipe.model_copy(update={"cut": window})
            settings = changed.model_dump_json(exclude={"name"})
            windows.setdefault(settings, replace(condition, recipe=changed, control="random_window"))
    for condition in conditions:
        # A window that is a condition of the study already is not run twice.
        windows.pop(condition.recipe.model_dump_json(exclude={"name"}), None)
    return [trial for window in named(study, list(windows.values())) for trial in over_seeds(study, window)]


def _cross_entropy(study: Study, conditions: Sequence[Trial], plan: RunPlanner) -> list[Trial]:
    trials: list[Trial] = []
    for condition in conditions:
        recipe = condition.recipe
        if recipe.teacher is None:
            continue
        values = recipe.model_dump(mode="json") | {"name": f"{recipe.name}, cross-entropy"}
        # By values, since the recipe is validated anew without its teacher.
        without_teacher(values)
        taught_by_traces = validate(Recipe, values, f"study {study.name}, control cross_entropy")
        trials += over_seeds(study, replace(condition, recipe=taught_by_traces, control="cross_entropy"))
    return trials


def _evaluated(
    role: Literal["base", "teacher"], study: Study, conditions: Sequence[Trial], plan: RunPlanner
) -> list[Trial]:
    """Every distinct student, or teacher, evaluated without training."""
    by_model: dict[str, Recipe] = {}
    for recipe in (condition.recipe for condition in conditions):
        model = recipe.student if role == "base" else recipe.local_teacher
        if model is None:
            continue
        if not recipe.evaluation.tasks:
            raise SettingsError(f"controls: {role} is evaluated only, and the recipe has no evaluation.tasks; add one")
        # Nothing is trained, so that cuts must not make several runs of one model.
        changed = recipe.model_copy(update={"student": model, "role": role, "cut": Full(), "name": role})
        # All that decides the figures of a model that is not trained.
        by_model.setdefault(f"{model} {recipe.evaluation} {recipe.data.rendering} {recipe.tokenizer}", changed)
    trials: list[Trial] = []
    for number, recipe in enumerate(by_model.values(), 1):
        model, name = recipe.student, role
        if len(by_model) > 1:
            # Names must differ, or two models would share a row. Every run has its model in a directory `student`.
            if isinstance(model, Pretrained):
                shown = model.path.removesuffix("/student").rpartition("/")[2]
            else:
                shown = model.config.get("model_type")
            name = f"{role} {number}: {shown}"
        trials.append(Trial(recipe.model_copy(update={"name": name}), task="evaluate", control=role))
    return trials


def _of_length(recipe: Recipe, num_steps: int, suffix: str) -> Recipe:
    training = recipe.training.model_copy(update={"epochs": None, "steps": num_steps})
    return recipe.model_copy(update={"training": training, "name": f"{recipe.name}, {suffix}"})


# How each control is made, and why it may yield no trial.
_MAKERS: dict[Control, tuple[Callable[[Study, Sequence[Trial], RunPlanner], list[Trial]], str]] = {
    "equal_tokens": (
        _equal_tokens,
        "every condition trains on as many tokens as the uncut run, or on rollouts",
    ),
    "equal_steps": (_equal_steps, "every condition has as many optimiser steps as the uncut run already"),
    "random_window": (_random_window, "no condition's traces are cut by `lead`, or the windows are conditions already"),
    "cross_entropy": (_cross_entropy, "no condition has a teacher"),
    "base": (partial(_evaluated, "base"), "there is no condition"),
    "teacher": (partial(_evaluated, "teacher"), "no condition has a teacher that runs here"),
}
