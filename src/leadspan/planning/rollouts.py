"""Cost of drawing and learning from rollouts: an upper bound, or what a calibration lets expect.

A rollout that ends its turn before its cap costs less. Without a calibration every rollout is assumed to reach its cap;
a calibration has drawn some from the student as it begins, and lengths are taken from those. The memory is a bound
either way, and leaves out the cache of keys and values that a batch of rollouts needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from leadspan.costs.flops import ExampleSize, FlopsByPart, ModelShape, rollout_flops
from leadspan.costs.memory import BatchSize
from leadspan.data.supervision import RandomTokens, layout_sizes
from leadspan.data.truncation import kept_tokens
from leadspan.evaluation.sampling import PORTION
from leadspan.inputs import PreparedData
from leadspan.planning.prediction import CostModel, check_calibration, predict
from leadspan.planning.timing import Calibration, DrawingWork, StepWork
from leadspan.recipe import Recipe
from leadspan.results import Prediction
from leadspan.rollout.drawing import RolloutInputs
from leadspan.rollout.rows import room
from leadspan.stages import rollout_inputs

_Step = Sequence[tuple[int, int, ExampleSize]]
"""Tokens of the prompt, new tokens, and size of every example of a step; a trace has no new token."""


@dataclass(frozen=True, slots=True)
class RolloutCost:
    """The predicted cost of a run with rollouts."""

    prediction: Prediction  # of the run; `prediction.is_bound` where every rollout is assumed to reach its cap
    num_rollouts: int
    new_tokens: int
    prefill_flops: int  # operations of the student on prompts, in drawing
    decode_flops: int  # operations of the student on new tokens, in drawing
    teacher_flops: int
    training_flops: int  # operations of the student in training
    mean_longest: float  # mean over steps of the new tokens of the longest rollout, for which the step waits
    whole_flops: int  # operations of the same run with every rollout at full length
    drawing_seconds: float | None  # wall time of drawing; None without a calibration that has measured it
    warning: str  # what to expect of students that learn from short rollouts alone; "" for others


def predict_run(
    recipe: Recipe, data: PreparedData, model: CostModel, calibration: Calibration | None = None
) -> Prediction:
    """The predicted cost of a recipe's own run, on its traces or with rollouts; raises as `predict` and these do."""
    if recipe.rollout is None:
        return predict(model, data.examples, calibration)
    return cost_of_rollouts(recipe, data, model, calibration).prediction


def cost_of_rollouts(
    recipe: Recipe, data: PreparedData, model: CostModel, calibration: Calibration | None = None
) -> RolloutCost:
    """The cost of a recipe that has rollouts: a bound, or with a calibration's lengths an expectation.

    Time is predicted with measured rates of drawing, and for one rank.

    Raises:
        SettingsError: The calibration is of other models or another setting.
        DataError: A prompt leaves no room in the student's window, or the task of the prompts cannot be read.
        ModelError: The config of a model cannot be read.
    """
    assert recipe.rollout is not None, "the caller checks this"
    if calibration is not None:
        check_calibration(calibration, model)
    inputs = rollout_inputs(recipe, data, recipe.rollout)
    lengths = calibration.rollout_lengths if calibration is not None and inputs.stored is None else []
    numbers, per_batch = range(inputs.course.num_steps), inputs.examples_per_batch
    steps = [_examples(inputs, number, lengths) for number in numbers]
    trained, flops = _flops(model, inputs, steps)
    _, whole_flops = _flops(model, inputs, [_examples(inputs, n, lengths, is_whole=True) for n in numbers])
    drawn = [(prompt, new) for step in steps for prompt, new, _ in step if new]
    # A prompt by itself is a rollout of one token, less that token's place in the head.
    prefill = inputs.drawing_flops(model.student, [(prompt, 1) for prompt, _ in drawn])
    teacher = flops.teacher_body + flops.teacher_attention + flops.teacher_head
    drawing_seconds, seconds, source = None, None, None
    if calibration is not None and model.machine.num_ranks == 1 and (calibration.drawing or not flops.rollout):
        drawing_seconds = calibration.drawing_seconds(_batches(model.student, inputs, steps))
        of_step = zip(steps, trained, strict=True)
        work = [StepWork.of(step_flops, -(-len(step) // per_batch)) for step, step_flops in of_step]
        seconds, source = drawing_seconds + calibration.seconds(work), "calibration of training and drawing"
    longest = [[size for *_, size in _examples(inputs, number, [])] for number in numbers]
    batches = [step[i : i + per_batch] for step in longest for i in range(0, len(step), per_batch)]
    memory = model.memory.peak(*(BatchSize.of(batch) for batch in batches))
    prediction = Prediction(
        num_steps=len(steps),
        num_tokens=sum(size.tokens for step in steps for *_, size in step),
        num_weighted_tokens=sum(size.weighted for step in steps for *_, size in step),
        flops=flops,
        memory=memory if calibration is None else calibration.memory(memory),
        seconds=seconds,
        seconds_source=source,
        money=model.machine.money(seconds),
        is_bound=not lengths,
    )
    return RolloutCost(
        prediction=prediction,
        num_rollouts=len(drawn),
        new_tokens=sum(new for _, new in drawn),
        prefill_flops=prefill,
        decode_flops=flops.rollout - prefill,
        teacher_flops=teacher,
        training_flops=flops.total - teacher - flops.rollout,
        mean_longest=fmean(max((new for _, new, _ in step), default=0) for step in steps),
        whole_flops=whole_flops.total,
        drawing_seconds=drawing_seconds,
        warning=recipe.rollout.short_warning(len(steps)),
    )


def _examples(inputs: RolloutInputs, number: int, lengths: Sequence[int | None], is_whole: bool = False) -> _Step:
    """The examples of a step, as the course orders them, with rollouts of some lengths in turn; none given: at the cap.

    Whole: with every rollout at full length, unless it ends before.
    """
    # An adaptive horizon is at most what it is where every step lets it grow.
    course, supervision = inputs.course.step(number, [1.0] * number), inputs.rows.supervision
    selection = supervision.token_selection
    scored = None if isinstance(selection, RandomTokens) else selection
    examples: list[tuple[int, int, ExampleSize]] = []
    for index, turn in enumerate(course.turns, number * len(course.turns)):
        prompt = inputs.prompts[turn.prompt]
        new = room(replace(turn, cap=inputs.rows.budget) if is_whole else turn, prompt, inputs.window)
        length = lengths[index % len(lengths)] if lengths else None
        new = new if length is None else min(new, length)
        weighted = new + (len(prompt.ids) - 1) * (supervision.prompt > 0)
        selected = weighted if selection is None else kept_tokens(selection.share, weighted)
        size = ExampleSize(len(prompt.ids) + new, selected, weighted * (scored is not None))
        examples.append((len(prompt.ids), new, size))
    traces = layout_sizes((inputs.traces.layouts[index] for index in course.traces), scored)
    return examples + [(0, 0, size) for size in traces]


def _flops(model: CostModel, inputs: RolloutInputs, steps: Sequence[_Step]) -> tuple[list[FlopsByPart], FlopsByPart]:
    """Operations of training on each of some steps from the first on, and of all together with drawing."""
    shapes, recompute = (model.student, model.teacher), model.training.gradient_checkpointing
    trained = [
        inputs.training_flops(number, shapes, [size for *_, size in step], recompute)
        for number, step in enumerate(steps)
    ]
    drawn = [(prompt, new) for step in steps for prompt, new, _ in step if new]
    drawing = inputs.drawing_flops(model.student, drawn)
    return trained, FlopsByPart.added(trained).model_copy(update={"rollout": drawing})


def _batches(student: ModelShape, inputs: RolloutInputs, steps: Sequence[_Step]) -> list[DrawingWork]:
    """The batches in which the rollouts of some steps are drawn; none where they come from a store."""
    size, batches = inputs.course.settings.batch_size, []
    for number in range(len(steps) if inputs.stored is None else 0):
        together = inputs.drawn_with(number)
        if number == together.start:
            # Prompts of like length are drawn in one batch.
            rows = sorted((prompt, new) for n in together for prompt, new, _ in steps[n] if new)
            batches += [batch_work(student, rows[i : i + size]) for i in range(0, len(rows), size)]
    return batches


def batch_work(student: ModelShape, rows: Sequence[tuple[int, int]]) -> DrawingWork:
    """What drawing rows of prompt and new tokens takes; a row stays in its batch to the end of its last portion."""
    passes = max(new for _, new in rows)
    stay = sum(min(passes, -(-new // PORTION) * PORTION) for _, new in rows)
    return DrawingWork(passes, stay, rollout_flops(student, rows))
