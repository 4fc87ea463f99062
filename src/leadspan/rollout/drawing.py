"""Drawing rollouts: the inputs that stay as they are while a run trains, and the student, as it is now, that draws."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from leadspan.costs.flops import (
    ExampleSize,
    FlopsByPart,
    ModelShape,
    Shapes,
    forward_head,
    rollout_flops,
    training_flops,
)
from leadspan.data.examples import Example, Examples
from leadspan.data.packing import Batch, pack
from leadspan.errors import ModelError
from leadspan.evaluation.sampling import batches_of_like_length, draw
from leadspan.evaluation.settings import SamplingSettings
from leadspan.losses.settings import LossSettings
from leadspan.models.forward import LAYOUT
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.settings import ModelSettings
from leadspan.rollout.rows import Course, Prompt, Rollout, RowMaker, Turn, room, to_rollout
from leadspan.rollout.vllm_engine import VllmDrawing
from leadspan.status import report_detail

WholeIds = dict[tuple[str, int], list[int]]
"""New token ids of whole rollouts, by key of the prompt and number of the sample."""


@dataclass(frozen=True)
class RolloutInputs:
    """All that rollouts need besides the student's weights."""

    course: Course
    prompts: Sequence[Prompt]
    traces: Examples  # training examples that may be mixed in
    rows: RowMaker
    stop_ids: tuple[int, ...]  # tokens that end a turn, for student, teacher or data
    student: ModelSettings
    directory: Path
    examples_per_batch: int
    window: int | None  # positions of the student, where it has a limit
    cold_loss: LossSettings | None = None  # the objective of a cold start; None without one
    collate: Callable[[Sequence[Example]], Batch] = pack  # packs examples, with the targets of a store
    stored: WholeIds | None = None  # rollouts of a store, used instead of drawing; None where the student draws

    def drawn_with(self, step: int) -> range:
        """The steps whose rollouts are drawn together with those of a step, this one included."""
        settings, cold = self.course.settings, self.course.settings.num_cold_steps
        if step < cold:
            return range(step, step + 1)
        # Counted from the first step after the cold start; the last draw of a run may be for fewer steps.
        first = step - (step - cold) % settings.steps_per_draw
        return range(first, min(first + settings.steps_per_draw, self.course.num_steps))

    def is_stale(self, step: int) -> bool:
        """Whether the student was updated after the rollouts of a step were drawn."""
        return step != self.drawn_with(step).start

    def key(self, step: int, turn: Turn) -> str:
        """Key of a rollout's random stream."""
        return f"rollout:{step}:{self.prompts[turn.prompt].key}:{turn.sample}"

    def rollout(self, turn: Turn, drawn: Sequence[int], log_probs: Sequence[float] = ()) -> Rollout:
        """What was drawn for a turn, up to its end (`to_rollout`)."""
        limits = self.course.settings.max_new_tokens, self.window
        return to_rollout(turn, self.prompts[turn.prompt], drawn, self.stop_ids, limits, log_probs)

    def stored_ids(self, turn: Turn) -> list[int] | None:
        """New tokens of the whole rollout of a store; None where the student draws."""
        if self.stored is None:
            return None
        # A prompt that comes twice in a step begins with its first sample again.
        sample = turn.sample % self.course.settings.samples_per_prompt
        return self.stored[self.prompts[turn.prompt].key, sample]

    def drawing_flops(self, student: ModelShape, rollouts: Sequence[tuple[int, int]]) -> int:
        """Operations of drawing, by tokens of the prompt and new tokens; those of a store were drawn before."""
        return 0 if self.stored is not None else rollout_flops(student, rollouts)

    def loss_at(self, step: int) -> LossSettings | None:
        """The objective of a step; None where it is that of the run."""
        return self.cold_loss if step < self.course.settings.num_cold_steps else None

    def training_flops(
        self, step: int, shapes: Shapes, examples: Sequence[ExampleSize], recompute: bool
    ) -> FlopsByPart:
        """Operations of training on the examples of a step; old rollouts pass the student's head once more."""
        loss = self.loss_at(step)
        # A cold start on the tokens alone runs no teacher.
        student, teacher = shapes if loss is None or loss.kl_weight else (shapes[0], None)
        flops = training_flops(student, teacher, examples, recompute)
        again = forward_head(student, sum(size.weighted for size in examples)) * self.is_stale(step)
        return flops.model_copy(update={"student_head": flops.student_head + again})


def draw_rollouts(
    model: PreTrainedModel | VllmDrawing,
    inputs: RolloutInputs,
    turns: Sequence[tuple[int, Turn]],
    use_bf16: bool,
    with_log_probs: bool = False,
) -> list[Rollout]:
    """Draw the rollouts of some turns, in their order.

    Each turn comes with its step. A student has Transformers' own attention; a vLLM engine has the student's weights.
    """
    settings = inputs.course.settings
    prompts, keys = [inputs.prompts[turn.prompt] for _, turn in turns], [inputs.key(*turn) for turn in turns]
    texts = [prompt.ids for prompt in prompts]
    caps = [room(turn, prompt, inputs.window) for (_, turn), prompt in zip(turns, prompts, strict=True)]
    sampling = SamplingSettings(
        temperature=settings.temperature,
        # No nucleus and no top-k: the rollouts must be draws from the student's own distribution.
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=inputs.course.seed,
    )
    if isinstance(model, VllmDrawing):  # makes its own batches
        samples = model.draw(texts, caps, keys, inputs.stop_ids, sampling, with_log_probs)
        return [inputs.rollout(turn, *sample) for (_, turn), sample in zip(turns, samples, strict=True)]
    # Batched by length for speed alone: every rollout has a random stream of its own.
    drawn: dict[int, Rollout] = {}
    for indices in batches_of_like_length(texts, settings.batch_size):
        log_probs: list[list[float]] = [[] for _ in indices]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=use_bf16):
            new = draw(
                model,
                [list(texts[i]) for i in indices],
                [caps[i] for i in indices],
                [keys[i] for i in indices],
                inputs.stop_ids,
                sampling,
                inputs.rows.renderer.num_ids,
                log_probs if with_log_probs else None,
            )
        for i, ids, likely in zip(indices, new, log_probs, strict=True):
            drawn[i] = inputs.rollout(turns[i][1], ids, likely)
        report_detail(f"{len(drawn)}/{len(turns)} rollouts")
    return [drawn[i] for i in range(len(turns))]


def drawing_twin(student: torch.nn.Module, settings: ModelSettings) -> PreTrainedModel:
    """The student with Transformers' own attention, in evaluation mode, sharing all weights with the trained model.

    The optimiser changes these weights in place, so the twin needs no update.

    Raises:
        ModelError: The student's weights are sharded.
    """
    base = student.get_base_model() if isinstance(student, PeftModel) else student
    if any(isinstance(parameter, DTensor) for parameter in base.parameters()):
        raise ModelError("rollout: the student's weights are sharded, and rollouts need them whole; use DDP")
    # The memo says that the weights are copied already: modules are new, parameters are the student's.
    twin = cast(PreTrainedModel, copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()}))
    vars(twin).pop("forward", None)  # that of the objective
    vars(twin).pop(LAYOUT, None)
    # Transformers chooses an attention when it builds a model; the student's was chosen for packed rows.
    with torch.device("meta"):
        plain = build_untrained(load_config(settings), f"model {name_of(settings)}")
    twin.set_attn_implementation(cast(str, plain.config._attn_implementation))
    twin.eval()
    return twin
