"""The inputs of rollouts that do not change while a run trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leadspan.costs.flops import ExampleSize, FlopsByPart, ModelShape, forward_head, rollout_flops, training_flops
from leadspan.data.examples import Example, Examples
from leadspan.data.packing import Batch, pack
from leadspan.losses.settings import LossSettings
from leadspan.models.settings import ModelSettings
from leadspan.rollout.course import Course, Turn
from leadspan.rollout.prompts import Prompt
from leadspan.rollout.rows import RowMaker

WholeIds = dict[tuple[str, int], list[int]]
"""New token ids of whole rollouts, by key of the prompt and number of the sample."""

Shapes = tuple[ModelShape, ModelShape | None]


@dataclass(frozen=True)
class RolloutInputs:
    """All that rollouts need besides the student's weights.

    Attributes:
        course: The content of every step.
        prompts: The prompts that the student continues.
        traces: Training examples that may be mixed in.
        rows: Makes examples of rollouts.
        stop_ids: Tokens that end a turn, for student, teacher or data.
        student: Where the student comes from.
        directory: Run directory.
        examples_per_batch: Examples of a micro-batch.
        window: Positions of the student, where it has a limit.
        cold_loss: The objective of a cold start; None without one.
        collate: Packs examples, with the targets of a store.
        stored: Rollouts of a store, which are used instead of drawing; None where the student draws.
    """

    course: Course
    prompts: Sequence[Prompt]
    traces: Examples
    rows: RowMaker
    stop_ids: tuple[int, ...]
    student: ModelSettings
    directory: Path
    examples_per_batch: int
    window: int | None
    cold_loss: LossSettings | None = None
    collate: Callable[[Sequence[Example]], Batch] = pack
    stored: WholeIds | None = None

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
