"""The controls of a study: what a cut must be compared with before its accuracy means anything.

A cut run differs from the uncut one in what it sees and in how much it trains. `equal_tokens` and `equal_steps` take
the second apart from the first; `random_window` asks whether it matters that the kept part is the lead; `cross_entropy`
whether the teacher does; `base` what the student could do before.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
# Recipes whose data stay in memory: a cut and the uncut run that it is compared with.
_NUM_PREPARED = 2


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run as it would be planned: examples are counted with repeats, available traces with those in use."""

    num_tokens: int
    num_steps: int
    num_examples: int
    num_traces: int
    num_available: int


@dataclass
class RunPlanner:
    """Predicts the steps and tokens of runs; keeps the prepared data of recent recipes in memory."""

    prepared: "dict[str, PreparedData]" = field(default_factory=dict)

    def __call__(self, recipe: Recipe) -> PlannedRun:
        """Prepare the data of a recipe (or reuse it) and plan its run, as training would on one rank."""
        from leadspan.inputs import prepare_data
        from leadspan.training.steps import plan_steps

        key = recipe.model_dump_json(include={"seed", "data", "tokenizer", "student", "cut", "supervision"})
        if key not in self.prepared:
            # Dictionaries keep their order, so the first key is the oldest.
            while len(self.prepared) >= _NUM_PREPARED:
                del self.prepared[next(iter(self.prepared))]
            self.prepared[key] = prepare_data(recipe)
        data = self.prepared[key]
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
        of_control: list[Trial] = []
        if control in ("base", "teacher"):
            of_control = _evaluated(control, [*conditions, *more])
        elif control == "random_window":
            windows: dict[str, Trial] = {}
            for condition in conditions:
                window = equal_window(condition.recipe.cut)
                if window is not None and condition.recipe.has_traces:
                    recipe = condition.recipe.model_copy(update={"cut": window})
                    windows.setdefault(recipe.model_dump_json(exclude={"name"}), replace(condition, recipe=recipe))
            # A window that is a condition of the study already is not run twice.
            settings = {condition.recipe.model_dump_json(exclude={"name"}) for condition in conditions}
            new = [window for key, window in windows.items() if key not in settings]
            # Beside all conditions: a window among these may differ from a control in what labels leave out.
            renamed = named(study, [*conditions, *more, *new])[len(conditions) + len(more) :]
            of_control = [trial for window in renamed for trial in over_seeds(study, window)]
        elif control == "cross_entropy":
            for condition in (condition for condition in conditions if condition.recipe.teacher is not None):
                values = condition.recipe.model_dump(mode="json") | {"name": f"{condition.recipe.name}, cross-entropy"}
                # By values, since the recipe is validated anew without its teacher.
                without_teacher(values)
                try:
                    recipe = validate(Recipe, values, f"study {study.name}, control cross_entropy")
                except SettingsError as error:  # it learns from rollouts, or selects tokens by the teacher
                    faults = "; ".join(map(str.strip, str(error).splitlines()[1:]))
                    notes.append(f"cross_entropy: {condition.recipe.name} needs its teacher: {faults}")
                    continue
                of_control += over_seeds(study, replace(condition, recipe=recipe))
        else:
            seeded = (trial for condition in conditions for trial in over_seeds(study, condition))
            of_control = list(filter(None, (_of_equal_length(control, trial, plan) for trial in seeded)))
        if not of_control and not any(note.startswith(f"{control}: ") for note in notes):
            notes.append(f"{control}: {_WHY_NONE[control]}")
        trials += [replace(trial, control=control) for trial in of_control]
    return trials, notes


def _of_equal_length(control: Control, trial: Trial, plan: RunPlanner) -> Trial | None:
    """A cut with the tokens, or the steps, of the uncut run; None where it has them already, or cannot be compared."""
    recipe, training, uncut = trial.recipe, trial.recipe.training, trial.recipe.model_copy(update={"cut": Full()})
    if isinstance(recipe.cut, Full):
        return None
    if control == "equal_steps":
        # Batches of so many examples, and a number of steps, give every cut as many steps as the uncut run.
        if training.steps or not isinstance(training.batching, ByTokens):
            return None
        num_steps = plan(uncut).num_steps
        return replace(trial, recipe=_of_length(recipe, num_steps, "equal steps"), note=f"{num_steps} steps")
    # Rollouts are as long as they are, whatever the cut of the traces.
    if recipe.rollout is not None:
        return None
    goal, planned = plan(uncut).num_tokens, plan(recipe)
    num_traces = planned.num_traces
    # More traces first, more steps then: a longer run on the same traces would be a different question.
    if recipe.data.num_train is not None:
        num_needed = math.ceil(planned.num_traces * goal / planned.num_tokens)
        num_traces = min(max(num_needed, planned.num_traces), planned.num_available)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_train": num_traces})})

    def tokens_of(num_steps: int) -> int:
        return plan(_of_length(recipe, num_steps, "equal tokens")).num_tokens

    low, high = 1, max(2, planned.num_steps)
    # Doubling, then bisection: a plan of a large data set takes seconds, and its length is not known.
    while tokens_of(high) < goal:
        low, high = high, 2 * high
    high = low + 1 + bisect_left(range(low + 1, high), goal, key=tokens_of)
    num_steps = min((high - 1, high), key=lambda steps: abs(tokens_of(steps) - goal))
    if num_steps == planned.num_steps and num_traces == planned.num_traces:
        return None
    longer = _of_length(recipe, num_steps, "equal tokens")
    note = f"{num_steps} steps on {num_traces:,} traces"
    times = plan(longer).num_examples / num_traces
    # 5 % more repeats than in the cut run itself are not worth a note.
    if times > 1.05 * max(1.0, planned.num_examples / planned.num_traces):
        all_there_are = ", which are all there are" if num_traces == planned.num_available else ""
        note += f"{all_there_are}: each is seen {times:.2g} times"
    return replace(trial, recipe=longer, note=note)


def _evaluated(role: Literal["base", "teacher"], conditions: Sequence[Trial]) -> list[Trial]:
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
        trials.append(Trial(recipe.model_copy(update={"name": name}), task="evaluate"))
    return trials


def _of_length(recipe: Recipe, num_steps: int, suffix: str) -> Recipe:
    training = recipe.training.model_copy(update={"epochs": None, "steps": num_steps})
    return recipe.model_copy(update={"training": training, "name": f"{recipe.name}, {suffix}"})


_WHY_NONE: dict[Control, str] = {
    "equal_tokens": "every condition trains on as many tokens as the uncut run, or on rollouts",
    "equal_steps": "every condition has as many optimiser steps as the uncut run already",
    "random_window": "no condition's traces are cut by `lead`, or the windows are conditions already",
    "cross_entropy": "no condition has a teacher",
    "base": "there is no condition",
    "teacher": "no condition has a teacher that runs here",
}
"""Why a control may yield no trial."""
