"""Checks of on-policy recipes: a few rollouts of the untrained student, and the teacher's distributions on them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from leadspan.data.packing import on_device, pack
from leadspan.doctor.check_inputs import Check, CheckInputs
from leadspan.evaluation.sampling import encode
from leadspan.inputs import rollout_inputs
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings
from leadspan.rollout.course import Turn
from leadspan.rollout.drawing import RolloutInputs, draw_rollouts, drawing_twin
from leadspan.rollout.rows import Rollout, overlaps, to_rollout
from leadspan.teacher.settings import LiveTargets
from leadspan.teacher.targets import live_targets, teacher_logits

# Rollouts and their most new tokens: enough that some of them end, few enough for a CPU.
_NUM, _TOKENS = 32, 512
# Probability or overlap below which the doctor warns.
_LOW = 0.5


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
    looks = [_look(inputs, made_of, rollout) for rollout in _drawn(inputs, made_of)]
    yield _ends(looks, recipe.merges_stops)
    student, teacher = (float(np.mean([look.opens[i] for look in looks])) for i in (0, 1))
    if not made_of.rows.renderer.opening:  # else the prompt opens the thinking of both
        figure = f"probability {student:.2g} for the student, {teacher:.2g} for the teacher"
        yield Check.of(
            "student and teacher think alike",
            not abs(student - teacher) > _LOW,
            f"a rollout begins with a think tag with {figure}",
            "take a chat template that opens or closes the thinking of both (data.rendering.chat_template)",
        )
    overlap = float(np.mean([look.overlap for look in looks]))
    yield Check.of(
        "student and teacher agree on the likeliest tokens of rollouts",
        overlap >= _LOW,
        f"at {overlap:.1%} of the positions of {len(looks)} rollouts",
        "the teacher would hardly write such text: begin with rollout.cold_start",
    )


def _ends(looks: list[_Look], merges_stops: bool) -> Check:
    name, stops = "the teacher ends turns where the student does", [look.stop for look in looks if look.stop]
    if not stops:
        remedy = "it is not taught to end by prefixes: set a whole_share, a trace_share, or rollout.cold_start"
        return Check(name, "warning", f"none of {len(looks)} rollouts ends within {_TOKENS} tokens", remedy)
    of_any, of_token = (float(np.mean([stop[i] for stop in stops])) for i in (0, 1))
    figure = (
        f"{len(stops)} of {len(looks)} rollouts end; the teacher ends there with probability {of_any:.2g}, with the "
        f"student's own token {of_token:.2g}"
    )
    if not merges_stops and of_token < _LOW * of_any:
        return Check(name, "warning", figure, "the student is taught not to end its turns: set loss.stop: event")
    remedy = "the student ends where the teacher would go on: it will learn to write longer, up to max_new_tokens"
    return Check.of(name, of_any >= _LOW, figure, remedy)


def _drawn(inputs: CheckInputs, made_of: RolloutInputs) -> list[Rollout]:
    cap = min(_TOKENS, made_of.course.settings.max_new_tokens)
    turns = [Turn(prompt, 0, cap, True) for prompt in range(min(_NUM, len(made_of.prompts)))]
    twin = drawing_twin(inputs.student, inputs.recipe.student)
    drawn = draw_rollouts(twin, made_of, [(0, turn) for turn in turns], use_bf16=False)
    limits = cap, made_of.window
    return [
        to_rollout(turn, made_of.prompts[turn.prompt], sample.ids, made_of.stop_ids, limits)
        for turn, sample in zip(turns, drawn, strict=True)
    ]


def _look(inputs: CheckInputs, made_of: RolloutInputs, rollout: Rollout) -> _Look:
    assert inputs.teacher is not None, "checked before"
    renderer, start = made_of.rows.renderer, len(rollout.prompt.ids)
    example = made_of.rows.example(rollout)
    # Every new token and no other, whatever the recipe gives a weight.
    is_new = np.arange(len(example.weights)) >= start
    example = replace(example, weights=is_new.astype(np.float32))
    batch, size = on_device(pack([example]), inputs.device), len(renderer.tokenizer)
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
