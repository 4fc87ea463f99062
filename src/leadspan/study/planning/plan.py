"""The plan: what each policy would cost, before anything is trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from leadspan.audit.prepared import Searched
from leadspan.costs.devices import Device
from leadspan.costs.savings import Saving
from leadspan.costs.timing import Calibration
from leadspan.data.examples import Examples
from leadspan.data.truncation import AnyPolicy, Full, Lead, Policy
from leadspan.errors import DataError
from leadspan.inputs import PreparedData, cost_model_of, training_examples, training_inputs
from leadspan.pipeline import break_point_fields
from leadspan.recipe import Recipe
from leadspan.results import CutCounts, Interval, Prediction
from leadspan.settings import Settings, load_json, parse_yaml, validate
from leadspan.study.planning.stores import StoreCost, planned_codec, store_cost
from leadspan.teacher.config import Codec, Hidden, LiveTargets, StoredTargets
from leadspan.training.calibration import calibrate
from leadspan.training.config import ByExamples
from leadspan.training.prediction import CostModel, budget_that_fits, fits, predict, savings, with_store

GRID: tuple[AnyPolicy, ...] = (Full(), *(Lead(p=p) for p in (0.75, 0.5, 0.25, 0.1)))
"""Policies a plan compares with the recipe's own."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One policy.

    Attributes:
        label: Short name of the policy.
        is_recipes: Whether it is the recipe's own.
        cut: What it does to the examples.
        prediction: Its cost.
        fitting: Examples that fit into one micro-batch on the named device, whichever they are; None without a device.
        fitting_tokens: Token budget of a micro-batch that fits, whatever is packed; None without a device.
        longest: Tokens of its longest example.
        flops_saving: Where saved operations come from.
        memory_saving: Where saved memory comes from.
        store: Size of a store for it, and what it costs and saves; None where nothing is known of the teacher.
        without_derivation: Share of the searched traces whose first statement of the answer it cuts, of those that have
            one; None where none has, or none was searched.
    """

    label: str
    is_recipes: bool
    cut: CutCounts
    prediction: Prediction
    fitting: int | None
    fitting_tokens: int | None
    longest: int
    flops_saving: Saving
    memory_saving: Saving
    store: StoreCost | None
    without_derivation: Interval | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All policies of a plan.

    Attributes:
        name: The recipe's.
        rows: One per policy.
        device: The named device, or None.
        num_ranks: Devices.
        examples_per_batch: Examples of a micro-batch; None when batches are filled with tokens.
        precision: `bfloat16` or `float32`, in which the planned run trains.
        codec: What the sizes of stores are of.
        reads_store: Whether the recipe's targets come from a store.
        knows_teacher: Whether the costs of a live teacher are known, against which a store saves.
        currency: Sign of the price.
        recomputes: Whether gradient checkpointing is on.
        searched: Where traces first state the right answer; None when that was not asked for.
        left_out: Policies that leave nothing to learn, and why.
    """

    name: str
    rows: tuple[PlanRow, ...]
    device: Device | None
    num_ranks: int
    examples_per_batch: int | None
    precision: str
    codec: Codec
    reads_store: bool
    knows_teacher: bool
    currency: str
    recomputes: bool
    searched: Searched | None = None
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        found = asdict(replace(self, searched=None))
        for row, shown in zip(self.rows, found["rows"], strict=True):
            shown |= {"cut": row.cut.model_dump(), "prediction": row.prediction.model_dump()}
            shown["without_derivation"] = row.without_derivation and row.without_derivation.model_dump()
            for part in ("flops", "memory"):
                shown["prediction"][part]["total"] = getattr(row.prediction, part).total
        searched = self.searched and {"num_rows": self.searched.num_rows, **self.searched.summary.model_dump()}
        found["codec"] = self.codec.model_dump()
        return found | {"device": self.device and self.device.model_dump(), "searched": searched}


def plan_recipe(
    recipe: Recipe,
    data: PreparedData,
    policies: Sequence[Policy] = GRID,
    calibration: Calibration | None = None,
    searched: Searched | None = None,
) -> Plan:
    """Predict the cost of a recipe under its own policy and under others.

    Args:
        recipe: The run.
        data: Its data.
        policies: To compare with the recipe's own, which comes first unless it is among them.
        calibration: Measured rates.
        searched: First answers of its traces (`pipeline.first_answers_of`); None shows no break point.

    Raises:
        LeadspanError: A model's config cannot be read, the recipe's own policy leaves nothing to learn, or the
            calibration is of other models.
    """
    models = _models(recipe, data)
    own = [] if recipe.cut in policies else [recipe.cut]
    left_out: list[str] = []
    with_examples = _sides(recipe, data, [*own, *policies], left_out)
    rows = tuple(
        _row(recipe, data, models, examples, policy, calibration, searched) for policy, examples in with_examples
    )
    batching = recipe.training.batching
    return Plan(
        name=recipe.name,
        rows=rows,
        device=recipe.plan.found_device,
        num_ranks=recipe.plan.num_ranks,
        examples_per_batch=batching.examples_per_batch if isinstance(batching, ByExamples) else None,
        precision="bfloat16" if models.own.memory.use_bf16 else "float32",
        codec=planned_codec(recipe)[0],
        reads_store=isinstance(recipe.targets, StoredTargets),
        knows_teacher=models.live.memory.teacher_activations is not None,
        currency=recipe.plan.currency,
        recomputes=recipe.training.gradient_checkpointing,
        searched=searched,
        left_out=tuple(left_out),
    )


@dataclass(frozen=True, slots=True)
class _Models:
    """Costs of the recipe as it is, with a live teacher where one is named, and with a store."""

    own: CostModel
    live: CostModel
    stored: CostModel


def _models(recipe: Recipe, data: PreparedData) -> _Models:
    own = cost_model_of(recipe, data.renderer)
    if recipe.teacher is None:
        return _Models(own, own, own)
    if isinstance(recipe.targets, StoredTargets):
        beside = recipe.model_copy(update={"targets": LiveTargets()})
        return _Models(own, cost_model_of(beside, data.renderer), own)
    return _Models(own, own, with_store(own, isinstance(recipe.capture.codec, Hidden)))


def _sides(
    recipe: Recipe, data: PreparedData, policies: Sequence[Policy], left_out: list[str]
) -> Iterator[tuple[Policy, Examples]]:
    """The examples of each policy; one other than the recipe's own that leaves nothing is left out, and says why."""
    for policy in policies:
        try:
            yield policy, training_examples(recipe, data.splits, data.renderer, policy)
        except DataError as error:
            if policy == recipe.cut:
                raise
            left_out.append(str(error))


def calibration_of(
    recipe: Recipe, data: PreparedData, policies: Sequence[Policy], measure: bool, say: Callable[[str], None]
) -> Calibration | None:
    """Rates of the recipe's models: measured now, or read from `plan.calibration`, or None.

    Args:
        recipe: The run.
        data: Its data.
        policies: Those of the plan; a few steps of each are measured.
        measure: Measure now; the rates are written to `plan.calibration`, if it is set.
        say: Told in words what is being done.

    Raises:
        LeadspanError: The models cannot be trained, or the file is not one of rates.
    """
    path = recipe.plan.calibration
    if not measure:
        return None if path is None else load_json(Calibration, path)
    model = cost_model_of(recipe, data.renderer)
    sides = [examples for _, examples in _sides(recipe, data, policies, [])]
    found = calibrate(training_inputs(recipe, data, say), model, recipe.loss, sides)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def parse_policy(text: str) -> AnyPolicy:
    """A policy from YAML, as a recipe's `cut`.

    Raises:
        SettingsError: It is none.
    """
    return validate(_OnePolicy, {"cut": parse_yaml(text, f"--cut {text}")}, f"--cut {text}").cut


class _OnePolicy(Settings):
    cut: AnyPolicy


def _row(
    recipe: Recipe,
    data: PreparedData,
    models: _Models,
    examples: Examples,
    policy: Policy,
    calibration: Calibration | None,
    searched: Searched | None,
) -> PlanRow:
    device, model = recipe.plan.found_device, models.own
    same_rows = examples.rows.with_format(None)
    whole = Examples(same_rows, Full(), recipe.supervision, examples.stop_token_id, recipe.seed, "training set, uncut")
    flops_saving, memory_saving = savings(models.live, models.stored, examples, whole)
    prediction = predict(model, examples, calibration)
    if searched is not None:
        prediction = prediction.model_copy(update=break_point_fields(searched))
    return PlanRow(
        label=policy.label,
        is_recipes=policy == recipe.cut,
        cut=examples.counts,
        prediction=prediction,
        fitting=None if device is None else fits(model, examples, device.memory_bytes),
        fitting_tokens=None if device is None else budget_that_fits(model, examples, device.memory_bytes),
        longest=max(examples.lengths),
        flops_saving=flops_saving,
        memory_saving=memory_saving,
        store=store_cost(recipe, models.live, data, examples, prediction.flops),
        without_derivation=searched and searched.without_derivation(policy),
    )
