"""Settings of rollouts: what the student writes itself in training, and how far."""

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
    """Tag."""


class TaskPrompts(Settings):
    """The problems of a task; its reference answers are not read by the training."""

    kind: Literal["task"] = "task"
    """Tag."""
    task: TaskSettings
    """Where the problems are."""
    system: str = ""
    """System message before every problem; none when empty."""


class ColdStart(Settings):
    """A first stage in which the student learns from the traces under `cut` alone: off-policy, nothing is drawn."""

    steps: int = Field(ge=1)
    """Optimiser steps of it, of those of the run."""
    kl_weight: Share = 0.5
    """As `loss.kl_weight`, in these steps; with 0 they learn the tokens of the traces alone."""
    divergence: AnyDivergence = ForwardKl()
    """As `loss.divergence`, in these steps."""


class RolloutSettings(Settings):
    """On-policy distillation: in every step the student writes, and learns from the teacher's view of what it wrote.

    A step has `training.batching.examples_per_step` examples: traces by `trace_share`, the rest rollouts.
    Source: GKD, Agarwal et al., arXiv 2306.13649; over a prefix, arXiv 2602.15260 and 2605.31490.
    """

    prompts: Annotated[TracePrompts | TaskPrompts, Field(discriminator="kind")] = TracePrompts()
    """What the student is asked."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Rollouts of each prompt in a step."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Full length: most new tokens of a rollout; lowered where prompt and new tokens would not fit the window."""
    horizon: AnyHorizon = FixedHorizon()
    """After how many new tokens a rollout is ended, in each step."""
    whole_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the rollouts that go on to the full length, whatever the horizon: they teach where to stop."""
    trace_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of traces under `cut` among the examples; GKD's lambda is 1 less this."""
    steps_per_draw: int = Field(default=1, ge=1)
    """Optimiser steps whose rollouts are drawn at once, before the first of them: larger batches, and weights that are
    a little older. Positions are then weighed by how much likelier they are now (`loss.ratio_cap`)."""
    cold_start: ColdStart | None = None
    """Steps before the first rollout; absent: none. Shares and horizon begin behind them."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the student's draws; nothing but the temperature changes its distribution."""
    batch_size: int = Field(default=32, ge=1)
    """Rollouts drawn at a time by Transformers; does not change what is drawn."""
    engine: Annotated[Batched | Vllm, Field(discriminator="kind")] = Batched()
    """What draws. vLLM needs its extra, a GPU that it shares with the training (its share is
    `options: {gpu_memory_utilization: ...}`), one process, and a student without adapters; its weights are updated in
    place before every step."""

    def conflicts(self) -> Iterator[Rule]:
        """The horizon lies within the full length; draws of several steps are the student's own."""
        if self.steps_per_draw > 1 and self.temperature != 1:
            text = (
                f"steps_per_draw is {self.steps_per_draw} and temperature {self.temperature:g}: the ratio of new to "
                "old probabilities is taken at temperature 1; set one of the two to 1"
            )
            yield ("steps_per_draw", "temperature"), text
        if self.horizon.longest > self.max_new_tokens:
            text = (
                f"the horizon reaches {self.horizon.longest} tokens and max_new_tokens is {self.max_new_tokens}: "
                "raise the one or lower the other"
            )
            yield ("horizon", "max_new_tokens"), text

    @property
    def num_cold_steps(self) -> int:
        """Optimiser steps before the first rollout."""
        return 0 if self.cold_start is None else self.cold_start.steps

    @property
    def has_traces(self) -> bool:
        """Whether the student learns from traces, too."""
        return self.trace_share > 0 or self.cold_start is not None

    @property
    def label(self) -> str:
        """Short name of the condition."""
        shares = [("whole", self.whole_share), ("traces", self.trace_share)]
        cold = [f"from step {self.num_cold_steps}"] if self.cold_start is not None else []
        shown = [f"{share:g} {name}" for name, share in shares if share]
        return ", ".join([f"rollout {self.horizon.label}", *cold, *shown])
