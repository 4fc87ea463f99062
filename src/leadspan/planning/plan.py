"""The plan: what each policy would cost, before anything is trained."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic_core import to_jsonable_python

from leadspan.audit.first_answers import without_derivation
from leadspan.costs.flops import ExampleSize
from leadspan.costs.memory import disk_bytes
from leadspan.costs.settings import Device
from leadspan.data.examples import Examples, border_blocks
from leadspan.data.supervision import lay_out, layout_sizes
from leadspan.data.truncation import AnyPolicy, Cut, Full, Lead, Policy, with_ends
from leadspan.data.truncation.policy import CutCounts, shows_few_ends
from leadspan.errors import DataError, SettingsError, TargetsError
from leadspan.files import write_atomically
from leadspan.inputs import PreparedData, Searched, training_examples
from leadspan.planning.calibration import calibrate, measure_drawing
from leadspan.planning.fitting import (
    RankCost,
    Saving,
    Workload,
    flops_with,
    largest_batch,
    largest_budget,
    memory_with,
    rank_costs,
    saving,
    what_would_fit,
)
from leadspan.planning.prediction import (
    CostModel,
    StoreCost,
    break_point_fields,
    cost_model_of,
    planned,
    planned_targets,
    predict,
    store_cost,
    student_shape,
    with_store,
)
from leadspan.planning.rollouts import RolloutCost, cost_of_rollouts
from leadspan.planning.timing import Calibration, load_calibration
from leadspan.recipe import Recipe
from leadspan.results import Prediction
from leadspan.sources import check_figures
from leadspan.stages import checked_teacher, rollout_inputs, training_inputs
from leadspan.statistics.intervals import Interval
from leadspan.teacher.settings import Codec, Hidden, LiveTargets, Served
from leadspan.training.settings import ByExamples

logger = logging.getLogger(__name__)

GRID: tuple[AnyPolicy, ...] = (Full(), *(Lead(p=p) for p in (0.75, 0.5, 0.25, 0.1)))
"""Policies a plan compares with the recipe's own."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One policy."""

    policy: Policy
    is_recipes: bool  # whether it is the recipe's own
    cut: CutCounts
    prediction: Prediction
    fitting: int | None  # examples that fit into a micro-batch on the device, whichever they are; None without one
    fitting_tokens: int | None  # token budget of a micro-batch that fits, whatever is packed; None without a device
    longest: int  # tokens of its longest example
    flops_saving: Saving
    memory_saving: Saving
    store: StoreCost | None  # a store for it; None where nothing is known of the teacher
    # Share of the searched traces whose first statement of the answer it cuts, of those that have one; None: none has.
    without_derivation: Interval | None
    remedy: str = ""  # how to make it fit the named device, where not one example does; else empty
    # Ways to place the run on its devices, for the recipe's own policy where there are several; else none.
    ranks: tuple[RankCost, ...] = ()

    @property
    def label(self) -> str:
        """Short name of the policy."""
        return self.policy.label


@dataclass(frozen=True, slots=True)
class Plan:
    """All policies of a plan."""

    name: str
    rows: tuple[PlanRow, ...]
    device: Device | None
    num_ranks: int
    examples_per_batch: int | None  # examples of a micro-batch; None when batches are filled with tokens
    examples_per_step: int | None  # examples of an optimiser step over all ranks; None as well
    precision: str  # `bfloat16` or `float32`, in which the planned run trains
    codec: Codec  # for which the sizes of stores are computed
    reads_store: bool  # whether the recipe's targets come from a store
    knows_teacher: bool  # whether the costs of a live teacher are known, against which a store saves
    currency: str
    disk_bytes: int  # most bytes of the run directory: checkpoints and student
    searched: Searched | None = None  # where traces first state the right answer; None when that was not searched for
    left_out: tuple[str, ...] = ()  # policies that leave nothing to learn, and why
    rollouts: RolloutCost | None = None  # what the rollouts of the recipe cost at most; None without any
    served: str | None = None  # the teacher, where a server runs it

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        # Without the traces of the search, which are thousands of rows; its summary is added below.
        values = to_jsonable_python(replace(self, searched=None))
        for row, shown in zip(self.rows, values["rows"], strict=True):
            shown["label"] = row.label
            for part in ("flops", "memory"):
                shown["prediction"][part]["total"] = getattr(row.prediction, part).total
        if self.searched is not None:
            values["searched"] = {"num_rows": self.searched.num_rows, **self.searched.summary.model_dump()}
        return values


def plan_recipe(
    recipe: Recipe,
    data: PreparedData,
    policies: Sequence[Policy] = GRID,
    calibration: Calibration | None = None,
    searched: Searched | None = None,
) -> Plan:
    """Predict the cost of a recipe under its own policy and under others.

    The recipe's own policy comes first, unless it is among those it is compared with. Where hardly an example of it
    keeps its end, policies that show ends are added (`with_ends`). `inputs.first_answers_of` makes `searched`.

    Raises:
        LeadspanError: A config cannot be read, the recipe's own policy leaves nothing, or a calibration is of others.
    """
    model = live = stored = cost_model_of(recipe, data.renderer)
    if recipe.local_teacher is not None and recipe.store_path is not None:
        # Read from a store as set, and with the live teacher for what the store saves.
        live = cost_model_of(recipe.model_copy(update={"targets": LiveTargets()}), data.renderer)
    elif recipe.local_teacher is not None:
        stored = with_store(model, isinstance(recipe.capture.codec, Hidden))
    # What a naive run would train on: all training rows, uncut.
    rows_of_data = (sections for block in border_blocks(data.splits.train) for sections in block.borders)
    layouts = (lay_out(row, Cut(((0, row.num_tokens),)), recipe.supervision) for row in rows_of_data)
    uncut, left_out = layout_sizes(layouts, model.selection), list[str]()
    common = recipe, data, (model, live, stored), uncut, left_out, calibration, searched
    rows = [*_rows(*common, policies if recipe.cut in policies else [recipe.cut, *policies])]
    # With rollouts the student also learns to end its turns from what it writes itself.
    if recipe.rollout is None and any(row.is_recipes and shows_few_ends(row.cut) for row in rows):
        rows += _rows(*common, [policy for policy in with_ends(recipe.cut) if policy not in policies])
    by_examples = recipe.training.batching if isinstance(recipe.training.batching, ByExamples) else None
    return Plan(
        name=recipe.name,
        rows=tuple(rows),
        device=recipe.plan.found_device,
        num_ranks=recipe.plan.num_ranks,
        examples_per_batch=by_examples and by_examples.examples_per_batch,
        examples_per_step=by_examples and by_examples.examples_per_step,
        precision="bfloat16" if model.memory.use_bf16 else "float32",
        codec=planned_targets(recipe).codec,
        reads_store=recipe.store_path is not None,
        knows_teacher=live.memory.teacher_activations is not None,
        currency=recipe.plan.currency,
        disk_bytes=disk_bytes(student_shape(recipe)),
        searched=searched,
        left_out=tuple(left_out),
        rollouts=None if recipe.rollout is None else cost_of_rollouts(recipe, data, model, calibration),
        served=recipe.teacher.identity if isinstance(recipe.teacher, Served) else None,
    )


def _sides(
    recipe: Recipe, data: PreparedData, policies: Sequence[Policy], left_out: list[str]
) -> Iterator[tuple[Policy, Examples]]:
    """The examples of each policy; one that leaves nothing to learn is left out, unless it is the recipe's own."""
    for policy in policies:
        try:
            yield policy, training_examples(recipe, data.splits, data.renderer, policy)
        except DataError as error:
            if policy == recipe.cut:
                raise
            left_out.append(str(error))


def calibration_of(recipe: Recipe, data: PreparedData, policies: Sequence[Policy], measure: bool) -> Calibration | None:
    """Rates of the recipe's models: read from `plan.calibration`, or measured now in a few steps of each policy.

    With a single policy the recipe's own cut is measured, too: steps of one length do not show what grows with it.
    Policies that cannot be trained, or whose targets a store lacks, are not measured; the recipe's own is where none
    can be. Measured rates are written to `plan.calibration`, if it is set; None where there is nothing to
    read.

    Raises:
        LeadspanError: The models cannot be trained, or the file is not one of rates, or cannot be written.
    """
    path = recipe.plan.calibration
    if not measure:
        return load_calibration(path)
    if path is not None:
        check_figures("plan.calibration", path)
    model, teacher = cost_model_of(recipe, data.renderer), checked_teacher(recipe)
    inputs, sides = training_inputs(recipe, data, teacher), list[Examples]()
    own = [recipe.cut] if len(policies) == 1 and recipe.cut not in policies else []
    for policy, examples in _sides(recipe, data, [*policies, *own], []):
        try:
            planned(model, examples)
            teacher.check_serves(examples, examples.usable)
            sides.append(examples)
        except (SettingsError, TargetsError) as error:
            logger.warning("not measured: %s: %s", policy.label, error)
    calibration = calibrate(inputs, model, recipe.loss, sides or [data.examples])
    if recipe.rollout is not None and recipe.store_path is None:
        drawn = rollout_inputs(recipe, data, recipe.rollout)
        drawing, lengths = measure_drawing(drawn, model.student, model.memory.use_bf16)
        calibration = calibration.model_copy(update={"drawing": drawing, "rollout_lengths": lengths})
    if path is not None:
        write_atomically(path, calibration.model_dump_json(indent=1) + "\n")
    return calibration


def _rows(
    recipe: Recipe,
    data: PreparedData,
    models: tuple[CostModel, CostModel, CostModel],
    uncut: Sequence[ExampleSize],
    left_out: list[str],
    calibration: Calibration | None,
    searched: Searched | None,
    policies: Sequence[Policy],
) -> Iterator[PlanRow]:
    """The row of each policy, by the costs of the recipe as it is, with a live teacher if one is named, and a store.

    A policy that cannot be trained is left out, unless it is the recipe's own.
    """
    device, (model, live, stored) = recipe.plan.found_device, models
    shapes: dict[str, Any] = {"student": live.student, "teacher": live.teacher, "stored_teacher": stored.teacher}
    shapes["recompute"] = live.training.gradient_checkpointing
    # One after the other: the examples of all policies together would take too much memory.
    for policy, examples in _sides(recipe, data, policies, left_out):
        is_recipes, rows = policy == recipe.cut, examples.row_numbers
        try:
            plan, batches = planned(live, examples)
        except SettingsError as error:  # such as of a budget of tokens that an uncut trace exceeds
            if is_recipes:
                raise
            left_out.append(f"{policy.label}: {error}")
            continue
        # In every stage of a cut that changes, an example is of the same row.
        load = Workload([[uncut[rows[i % len(rows)]] for i in batch] for batch in plan.plan], batches)
        prediction = predict(model, examples, calibration)
        if searched is not None:
            prediction = prediction.model_copy(update=break_point_fields(searched))
        fitting, fitting_tokens, remedy = None, None, ""
        if device is not None:
            sizes = layout_sizes(examples.layouts, live.selection)
            room = device.memory_bytes if calibration is None else calibration.room(device.memory_bytes)
            fitting = largest_batch(model.memory, sizes, room)
            fitting_tokens = largest_budget(model.memory, sizes, room)
            remedy = "" if fitting else what_would_fit(recipe, model, examples, room)
        yield PlanRow(
            policy=policy,
            is_recipes=is_recipes,
            cut=examples.counts,
            prediction=prediction,
            fitting=fitting,
            fitting_tokens=fitting_tokens,
            longest=max(examples.lengths),
            flops_saving=saving(partial(flops_with, load=load, **shapes)),
            memory_saving=saving(
                partial(memory_with, load=load, model=live.memory, stored_teacher=stored.memory.teacher)
            ),
            store=store_cost(recipe, live, data, examples, prediction.flops),
            without_derivation=searched and without_derivation(policy, searched.traces, searched.seed),
            remedy=remedy,
            ranks=rank_costs(live, examples, stored) if is_recipes and recipe.plan.num_ranks > 1 else (),
        )
