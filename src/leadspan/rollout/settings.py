"""Settings of rollouts: text that the student generates in training, and its length."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from leadspan.evaluation.settings import Batched, TaskSettings, Vllm
from leadspan.faults import Rule
from leadspan.losses.settings import AnyDivergence, ForwardKl, Share
from leadspan.rollout.horizon import AnyHorizon, FixedHorizon
from leadspan.settings import Settings


class TracePrompts(Settings):
    """The prompts of the training traces, each once."""

    kind: Literal["traces"] = "traces"


class TaskPrompts(Settings):
    """The problems of a task; training does not use its reference answers."""

    kind: Literal["task"] = "task"
    task: TaskSettings
    """Where the problems are."""
    system: str = ""
    """System message before every problem; none when empty."""


class ColdStart(Settings):
    """A first, off-policy stage in which the student learns from the traces under `cut` alone."""

    steps: int = Field(ge=1)
    """Optimiser steps of this stage; they count among those of the run."""
    kl_weight: Share = 0.5
    """`loss.kl_weight` in these steps; with 0 they learn from the tokens of the traces alone."""
    divergence: AnyDivergence = ForwardKl()
    """`loss.divergence` in these steps."""


class RolloutSettings(Settings):
    """On-policy distillation: the student generates text in every step, and learns from the teacher's targets on it.

    A step has `training.batching.examples_per_step` examples: traces by `trace_share`, the rest rollouts.
    Source: GKD, Agarwal et al., arXiv 2306.13649; over a prefix, arXiv 2602.15260 and 2605.31490.
    """

    prompts: Annotated[TracePrompts | TaskPrompts, Field(discriminator="kind")] = TracePrompts()
    """The prompts that the student continues."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Rollouts of each prompt in a step."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Full length: most new tokens of a rollout; lowered where prompt and new tokens would not fit the window."""
    horizon: AnyHorizon = FixedHorizon()
    """Number of new tokens after which a rollout is ended, in each step."""
    whole_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the rollouts that may reach the full length, whatever the horizon: they teach where to stop."""
    trace_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of traces under `cut` among the examples; GKD's lambda is 1 less this."""
    steps_per_draw: int = Field(default=1, ge=1)
    """Optimiser steps whose rollouts are drawn together, before the first of them: batches are larger, and the drawing
    weights a little older. Positions are then weighted by how much likelier they are now (`loss.ratio_cap`)."""
    cold_start: ColdStart | None = None
    """Steps before the first rollout; absent: none. Shares and horizon start after them."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the student's draws; nothing else changes its distribution."""
    batch_size: int = Field(default=32, ge=1)
    """Rollouts drawn at a time by Transformers; does not change what is drawn."""
    engine: Annotated[Batched | Vllm, Field(discriminator="kind")] = Batched()
    """Engine that draws. vLLM needs its extra, a GPU that it shares with training (its share is
    `options: {gpu_memory_utilization: ...}`), one process, and a student without adapters; its weights are updated in
    place before every step."""

    def conflicts(self) -> Iterator[Rule]:
        """The horizon lies within the full length; draws of several steps are at temperature 1."""
        if self.steps_per_draw > 1 and self.temperature != 1:
            text = (
                f"steps_per_draw is {self.steps_per_draw} and temperature {self.temperature:g}: the ratio of new to "
                "old probabilities is taken at temperature 1; set one of the two to 1"
            )
            yield ("steps_per_draw", "temperature"), text
        # The lengths that a horizon names; a share is always within the full length, which bounds what grows, too.
        longest = max(self.horizon.model_dump(include={"tokens", "start", "end"}).values(), default=0)
        if longest > self.max_new_tokens:
            text = (
                f"the horizon reaches {longest} tokens and max_new_tokens is {self.max_new_tokens}: "
                "raise the one or lower the other"
            )
            yield ("horizon", "max_new_tokens"), text

    @property
    def num_cold_steps(self) -> int:
        """Optimiser steps before the first rollout."""
        return 0 if self.cold_start is None else self.cold_start.steps

    @property
    def is_whole(self) -> bool:
        """Whether no horizon ends a rollout: it is the full length in the first and in the last step."""
        if self.horizon.kind == "adaptive":
            return False
        return min(self.horizon.at(step, 2, self.max_new_tokens) for step in (0, 1)) >= self.max_new_tokens

    @property
    def short_warning(self) -> str:
        """What happened to students of which every example ended at the horizon, with the remedy; "" for other runs.

        Source: docs/studies/on_policy.md.
        """
        if self.horizon.kind == "adaptive" or self.whole_share or self.trace_share:
            return ""
        last = self.horizon.at(1, 2, self.max_new_tokens)
        if last >= self.max_new_tokens:
            return ""
        return (
            f"No rollout goes beyond {last} tokens, and students of such horizons have been seen to lose what lies "
            "behind: later reasoning, answer, and end; leave a tenth of the rollouts whole (rollout.whole_share: "
            "0.1) or take traces among them (rollout.trace_share: 0.5)."
        )

    @property
    def has_traces(self) -> bool:
        """Whether the student also learns from traces."""
        return self.trace_share > 0 or self.cold_start is not None

    @property
    def label(self) -> str:
        """Short name of the condition."""
        shares = [("whole", self.whole_share), ("traces", self.trace_share)]
        # Shares of 0 are left out: a name says what differs from the plain rollout.
        cold = [f"from step {self.num_cold_steps}"] if self.cold_start is not None else []
        shown = [f"{share:g} {name}" for name, share in shares if share]
        return ", ".join([f"rollout {self.horizon.label}", *cold, *shown])
