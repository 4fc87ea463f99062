"""Checks of a recipe that run the real code: each gives a verdict, a figure and a remedy.

The models are run over the beginnings of a few training examples, through the same packing, forward pass and loss as
training; those of on-policy recipes draw a few rollouts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import on_device, pack
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Budget, Full
from leadspan.doctor.fit_checks import (
    Check,
    CheckInputs,
    disk_and_memory,
    end_of_turn,
    padding,
    served_teacher,
    stored_targets,
    tokenizers,
)
from leadspan.evaluation.sampling import encode
from leadspan.inputs import prepare_data
from leadspan.losses.objective import LossOutput, batch_loss
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model
from leadspan.ranks import process_device
from leadspan.recipe import Recipe
from leadspan.rollout.drawing import RolloutInputs, draw_rollouts, drawing_twin
from leadspan.rollout.rows import Rollout, Turn, overlaps
from leadspan.stages import rollout_inputs
from leadspan.status import Progress, report_status
from leadspan.tables import percent
from leadspan.teacher.settings import LiveTargets
from leadspan.teacher.targets import freeze, live_targets, teacher_logits

EXCERPT_TOKENS = 256
NUM_PACKED = 3
"""Examples that are packed and compared with each one alone: enough to show leaks, few enough for seconds on a CPU."""
STRIDE = 4
"""Every how many positions a loss is computed: heads over a large vocabulary take most of the time."""
# Rollouts and their most new tokens: enough that some of them end, few enough for a CPU.
_NUM, _TOKENS = 32, 512
# Probability or overlap below which the doctor warns.
_LOW = 0.5


@torch.no_grad()
def teacher_losses(inputs: CheckInputs) -> Iterator[Check]:
    """The teacher's KL from itself; and the traces, which it should find likelier than the student does."""
    names = "KL(teacher, teacher) is 0", "teacher's NLL on the traces below the student's"
    if inputs.teacher is None:
        yield from (Check(name, "skipped", "no teacher runs here") for name in names)
        return
    # With the teacher as student, through packing, forward pass and loss.
    kl = _totals(_loss(inputs.teacher, inputs, _shortest(inputs), inputs.teacher))[1]
    remedy = "the loss or the forward pass of this architecture is wrong; please report it"
    # Far above the rounding of float32, far below what a wrong mask or position gives. NaN is below nothing: it fails.
    yield Check.of(names[0], abs(kl) < 1e-5, f"{kl:.2g} nats per position", remedy, "failed")
    ours, _, theirs = _totals(_loss(inputs.student, inputs, inputs.excerpts, inputs.teacher))
    figure = f"{theirs:.4g} and {ours:.4g} nats per token of the first {EXCERPT_TOKENS}"
    # Else it has nothing to teach.
    remedy = "the teacher finds these traces unlikely: use the teacher that wrote them, or its own traces"
    yield Check.of(names[1], theirs < ours, figure, remedy)


@torch.no_grad()
def labels(inputs: CheckInputs) -> Iterator[Check]:
    """Compare the cross-entropy with Transformers' own, which shifts labels itself, on one sequence."""
    [example] = _shortest(inputs, 1)
    ours = _totals(_loss(inputs.student, inputs, [example], None, stride=1))[0]
    ids = torch.from_numpy(example.input_ids)[None].to(inputs.device)
    plain = freeze(load_model(inputs.recipe.student, torch.float32, for_training=False), inputs.device)
    theirs = float(plain(input_ids=ids, labels=ids).loss)
    figure = f"cross-entropy {ours:.6g}, Transformers' own {theirs:.6g}"
    remedy = "labels and positions do not match for this architecture; please report it"
    # Labels that are shifted twice or not at all change it by far more than a thousandth.
    is_equal = abs(ours - theirs) < 1e-3 * max(1.0, theirs)
    yield Check.of("labels are shifted once", is_equal, figure, remedy, "failed")


@torch.no_grad()
def invariance(inputs: CheckInputs) -> Iterator[Check]:
    """Compare the loss of a pack with the sum of its examples' losses, each computed alone."""
    sample = _shortest(inputs)
    together = _loss(inputs.student, inputs, sample, inputs.teacher)
    alone = [_loss(inputs.student, inputs, [example], inputs.teacher) for example in sample]
    # Sums over sums: means of unequal examples would differ without a fault.
    packed = float(together.loss_sum / together.weight_sum)
    summed = float(sum(o.loss_sum for o in alone) / sum(o.weight_sum for o in alone))
    difference = abs(packed - summed) / max(abs(summed), 1e-9)
    name, figure = "loss is invariant to accumulation and packing", f"relative difference {difference:.1g}"
    remedy = "this architecture lets examples of a pack see each other; set examples_per_batch: 1"
    yield Check.of(name, difference < 1e-4, f"{figure} over {len(sample)} examples", remedy, "failed")


def _shortest(inputs: CheckInputs, number: int = NUM_PACKED) -> list[Example]:
    return sorted(inputs.excerpts, key=lambda example: len(example.input_ids))[:number]


def _loss(
    student: PreTrainedModel,
    inputs: CheckInputs,
    examples: list[Example],
    teacher: PreTrainedModel | None,
    stride: int = STRIDE,
) -> LossOutput:
    """The loss of some examples in one pack, at every `stride`-th position; half KL where there is a teacher."""
    thinned: list[Example] = []
    for example in examples:
        # The other weights become 0, so that all tokens stay as context.
        weights = np.zeros_like(example.weights)
        chosen = np.flatnonzero(example.weights)[::stride]
        weights[chosen] = example.weights[chosen]
        thinned.append(replace(example, weights=weights))
    batch = on_device(pack(thinned), inputs.device)
    targets = None if teacher is None else live_targets(teacher, batch)
    rows = {head_of(model).weight.shape[0] for model in (student, teacher) if model is not None}
    shared = inputs.data.renderer.num_ids if len(rows) > 1 else None
    # On a CPU compiling would take longer than the losses; on a GPU the kernel of training is what is checked.
    settings = LossSettings(kl_weight=0.5, compiled=None if inputs.device.type == "cuda" else False)
    return batch_loss(student, batch, targets, settings, shared)


def _totals(output: LossOutput) -> tuple[float, ...]:
    """Mean cross-entropy, KL and the teacher's cross-entropy; NaN without a teacher."""
    # The columns' sums come first, then how many values each of them has.
    sums, counts = output.totals.double().sum(0).tensor_split(2)
    means = sums / counts
    return tuple(float(means[ROW_COLUMNS.index(name)]) for name in ("cross_entropy", "divergence", "teacher_nll"))


@dataclass(frozen=True, slots=True)
class _Look:
    """Measurements on one rollout.

    Attributes:
        overlap: Share of its positions at which the likeliest tokens of student and teacher are the same.
        opens: Probability under the student, and under the teacher, that the rollout begins with a think tag.
        stop: The teacher's probability of ending the turn where the student does: with any end-of-turn token, and with
            the student's own; None where nothing ended it.
    """

    overlap: float
    opens: tuple[float, float]
    stop: tuple[float, float] | None


@torch.no_grad()
def rollouts(inputs: CheckInputs) -> Iterator[Check]:
    """Whether the student ends its turns, whether the teacher would end there too, whether both think alike."""
    recipe = inputs.recipe
    if recipe.rollout is None or inputs.teacher is None:
        return
    # With a live teacher: a store has nothing on rollouts that are drawn now.
    made_of = rollout_inputs(recipe.model_copy(update={"targets": LiveTargets()}), inputs.data, recipe.rollout)
    cap = min(_TOKENS, recipe.rollout.max_new_tokens)
    looks = [_look(inputs, made_of, rollout) for rollout in _drawn(inputs, made_of, cap)]
    yield _ends(looks, recipe.merges_stops, cap)
    student, teacher = (float(np.mean([look.opens[i] for look in looks])) for i in (0, 1))
    if not made_of.rows.renderer.opening:  # else the prompt opens the thinking of both
        figure = f"probability {student:.2g} for the student, {teacher:.2g} for the teacher"
        yield Check.of(
            "student and teacher think alike",
            abs(student - teacher) <= _LOW,
            f"a rollout begins with a think tag with {figure}",
            "take a chat template that opens or closes the thinking of both (data.rendering.chat_template)",
        )
    overlap = float(np.mean([look.overlap for look in looks]))
    yield Check.of(
        "student and teacher agree on the likeliest tokens of rollouts",
        overlap >= _LOW,
        f"at {percent(overlap, 1)} of the positions of {len(looks)} rollouts",
        "the teacher would hardly write such text: begin with rollout.cold_start",
    )


def _ends(looks: list[_Look], merges_stops: bool, cap: int) -> Check:
    name, stops = "the teacher ends turns where the student does", [look.stop for look in looks if look.stop]
    if not stops:
        remedy = "prefixes do not teach it to end: set a whole_share, a trace_share, or rollout.cold_start"
        return Check(name, "warning", f"none of {len(looks)} rollouts ends within {cap} tokens", remedy)
    of_any, of_token = (float(np.mean([stop[i] for stop in stops])) for i in (0, 1))
    figure = (
        f"{len(stops)} of {len(looks)} rollouts end; the teacher ends there with probability {of_any:.2g}, with the "
        f"student's own token {of_token:.2g}"
    )
    if not merges_stops and of_token < _LOW * of_any:
        return Check(name, "warning", figure, "the student is taught not to end its turns: set loss.stop: event")
    remedy = "the student ends where the teacher would go on: it will learn to write longer, up to max_new_tokens"
    return Check.of(name, of_any >= _LOW, figure, remedy)


def _drawn(inputs: CheckInputs, made_of: RolloutInputs, cap: int) -> list[Rollout]:
    turns = [Turn(prompt, 0, cap, True) for prompt in range(min(_NUM, len(made_of.prompts)))]
    twin = drawing_twin(inputs.student, inputs.recipe.student)
    return draw_rollouts(twin, made_of, [(0, turn) for turn in turns], use_bf16=False)


def _look(inputs: CheckInputs, made_of: RolloutInputs, rollout: Rollout) -> _Look:
    assert inputs.teacher is not None, "checked before"
    renderer, start = made_of.rows.renderer, len(rollout.prompt.ids)
    example = made_of.rows.example(rollout)
    # Every new token and no other, whatever the recipe gives a weight.
    is_new = np.arange(len(example.weights)) >= start
    example = replace(example, weights=is_new.astype(np.float32))
    batch, size = on_device(pack([example]), inputs.device), renderer.num_ids
    teacher = live_targets(inputs.teacher, batch)
    agreement = batch_loss(inputs.student, batch, teacher, LossSettings(kl_weight=1), size).agreement
    # The positions that predict the first new token, and the one that ends the turn.
    first, last = slice(0, 1), slice(len(batch["positions"]) - 1, None)
    opening = encode(renderer.tokenizer, renderer.rendering.think_open)[0]
    of_both = live_targets(inputs.student, batch), teacher
    student_opens, teacher_opens = (
        float(teacher_logits(targets, first, size).softmax(-1)[0, opening]) for targets in of_both
    )
    stop = None
    if rollout.ending == "stop":
        at_stop = teacher_logits(teacher, last, size).softmax(-1)[0]
        stop = float(at_stop[list(made_of.stop_ids)].sum()), float(at_stop[rollout.new_ids[-1]])
    overlap = overlaps(example, start, agreement.cpu().numpy(), len(rollout.new_ids))[0]
    return _Look(overlap or 0.0, (student_opens, teacher_opens), stop)


_CHECKS = (
    padding,
    teacher_losses,
    tokenizers,
    labels,
    end_of_turn,
    invariance,
    stored_targets,
    served_teacher,
    rollouts,
    disk_and_memory,
)


def examine(recipe: Recipe, num_examples: int) -> list[Check]:
    """Run every check of a recipe.

    Raises:
        LeadspanError: The data or a model cannot even be loaded.
    """
    report_status("preparing data")
    data = prepare_data(recipe)
    report_status("loading models")
    device = process_device()
    # In float32, so that a difference is a fault and not rounding.
    student = freeze(load_model(recipe.student, torch.float32), device)
    local = recipe.local_teacher
    teacher = None if local is None else freeze(load_model(local, torch.float32, is_frozen=True), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    stop = data.renderer.stop_token_id
    complete, begun = (
        Examples(data.splits.train, policy, everything, stop, recipe.seed, "training set")
        for policy in (Full(), Budget(num_tokens=EXCERPT_TOKENS))
    )
    # Uncut and with all positions weighted: the checks look for faults in any section.
    sample, excerpts = ([rows[i] for i in range(min(num_examples, len(rows)))] for rows in (complete, begun))
    inputs = CheckInputs(recipe, data, student, teacher, sample, excerpts, device)
    checks: list[Check] = []
    progress = Progress("checking", len(_CHECKS), "checks", work=())
    for number, check in enumerate(_CHECKS):
        progress.report(number, f", {check.__name__.replace('_', ' ')}")
        checks += check(inputs)
        if check is padding and checks[-1].verdict == "failed":
            break  # a model cannot be run over ids that it has no rows for
    return checks
