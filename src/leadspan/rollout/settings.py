"""Settings of rollouts: text that the student generates in training, and its length in each step.

A horizon, the number of new tokens after which a rollout ends, is a frozen settings object with one pure method, from
the number of the step to the number of tokens. It has no state, so a resumed run has the same horizons as one without
a break. The adaptive one follows from the overlaps of the steps before, which the record of rollouts stores.

**Sources**: a fixed budget, ESR (arXiv 2605.27028, N = 100); a share of the full length, TOPD, and stairs, POPD (arXiv
2605.31490); linear growth in steps of 256 tokens, Reasoning Prefixes (arXiv 2602.15260); by overlap, after Prune-OPD
(arXiv 2605.07804), which ends single rollouts by that of the `k` likeliest tokens.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from leadspan.evaluation.settings import Batched, TaskSettings, Vllm
from leadspan.faults import Rule
from leadspan.losses.settings import AnyDivergence, ForwardKl, Share
from leadspan.settings import Settings

Tokens = Annotated[int, Field(ge=1)]
_LABELS = {
    "fixed": "{tokens}",
    "share": "share {share:g}",
    "linear": "{start}-{end}",
    "stairs": "{start} + {rise} every {every} steps",
    "adaptive": "adaptive from {start}, overlap {low:g}-{high:g}",
}
"""Short names of horizons by kind, of their settings."""
# Arguments of `vllm.LLM` that the drawing of a training gives.
_SET_IN_TRAINING = {"skip_tokenizer_init", "load_format", "max_model_len", "weight_transfer_config"}


def first_of(share: float, number: int) -> int:
    """How many of the first `number` items are of a kind with this share: `floor(share * number)`."""
    # The decimal as written: 0.29 * 100 is below 29 in binary.
    return int(Fraction(str(share)) * number)


class FixedHorizon(Settings):
    """The same number of tokens in every step."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 256
    """New tokens."""

    def at(self, step: int, num_steps: int, budget: int) -> int:
        """New tokens of a rollout.

        >>> FixedHorizon(tokens=100).at(7, 10, 2048)
        100

        Args:
            step: Optimiser step, from 0.
            num_steps: Optimiser steps of the run.
            budget: New tokens of a rollout at full length.
        """
        return self.tokens


class ShareHorizon(Settings):
    """A share of the full length in every step."""

    kind: Literal["share"] = "share"
    share: float = Field(default=0.1, gt=0, le=1)
    """Of `rollout.max_new_tokens`."""

    def at(self, step: int, num_steps: int, budget: int) -> int:
        """`max(1, floor(share * budget))`.

        >>> ShareHorizon(share=0.1).at(0, 10, 2048)
        204
        """
        return max(1, first_of(self.share, budget))


class LinearHorizon(Settings):
    """`start + (end - start) k / (K - 1)` in step `k` of `K` (from 0), rounded up to a multiple and never above `end`.

    It may shrink too; then it is never above `start`.
    """

    kind: Literal["linear"] = "linear"
    start: Tokens = 256
    """New tokens in the first step."""
    end: Tokens = 2048
    """New tokens in the last step."""
    multiple: Tokens = 256
    """Lengths are multiples of this: with few different lengths, little is compiled again."""

    def conflicts(self) -> Iterator[Rule]:
        """The horizon changes."""
        if self.start == self.end:
            yield ("start", "end"), f"start and end are both {self.start}, so nothing changes; take kind: fixed"

    def at(self, step: int, num_steps: int, budget: int) -> int:
        """New tokens of a rollout.

        >>> [LinearHorizon(start=100, end=1000).at(k, 5, 4096) for k in range(5)]
        [256, 512, 768, 1000, 1000]
        """
        # A fraction, so that a step that is due at a multiple does not miss it by a rounding.
        exact = self.start + Fraction((self.end - self.start) * step, max(1, num_steps - 1))
        # `-(-a // b)` rounds up.
        return min(max(self.start, self.end), -(-exact // self.multiple) * self.multiple)


class StairsHorizon(Settings):
    """`start + rise * floor(k / every)` in step `k` (from 0), up to the full length."""

    kind: Literal["stairs"] = "stairs"
    start: Tokens = 256
    """New tokens in the first steps."""
    rise: Tokens = 256
    """More new tokens with every stair."""
    every: Tokens = 10
    """Steps on one stair."""

    def at(self, step: int, num_steps: int, budget: int) -> int:
        """New tokens of a rollout.

        >>> [StairsHorizon(start=100, rise=50, every=2).at(k, 9, 190) for k in (0, 1, 2, 4, 8)]
        [100, 100, 150, 190, 190]
        """
        return min(budget, self.start + self.rise * (step // self.every))


class AdaptiveHorizon(Settings):
    """Grows where student and teacher agree near the horizon's end, and shrinks where they do not.

    The overlap is the share of positions at which the student's likeliest token is the teacher's, over the last quarter
    of the horizon, averaged over the rollouts of a step that reach it. A step without such a rollout changes nothing.
    On text that the teacher would not have written its distribution is of little use, so the horizon shrinks there.
    """

    kind: Literal["adaptive"] = "adaptive"
    start: Tokens = 256
    """New tokens in the first step."""
    least: Tokens = 64
    """Fewest new tokens; the most is the full length."""
    change: Tokens = 64
    """New tokens that a step adds or removes."""
    low: float = Field(default=0.6, ge=0, le=1)
    """Overlap below which the horizon shrinks."""
    high: float = Field(default=0.8, ge=0, le=1)
    """Overlap from which the horizon grows."""

    def conflicts(self) -> Iterator[Rule]:
        """The bounds are ordered."""
        if self.least > self.start:
            yield ("least", "start"), f"least is {self.least} and start {self.start}: raise start or lower least"
        if self.low > self.high:
            yield ("low", "high"), f"low is {self.low:g} and high {self.high:g}: lower the one or raise the other"

    def after(self, overlaps: Sequence[float | None], budget: int) -> int:
        """New tokens of a rollout after some steps.

        >>> AdaptiveHorizon(start=100, least=50, change=40).after([0.9, None, 0.7, 0.1, 0.1, 0.1], 130)
        50

        Args:
            overlaps: Of each step; None where no rollout reached the last quarter.
            budget: New tokens of a rollout at full length.
        """
        horizon = self.start
        for overlap in overlaps:
            if overlap is not None:
                # Between the two overlaps the horizon stays.
                change = self.change * ((overlap >= self.high) - (overlap < self.low))
                horizon = min(budget, max(self.least, horizon + change))
        return horizon


AnyHorizon = Annotated[
    FixedHorizon | ShareHorizon | LinearHorizon | StairsHorizon | AdaptiveHorizon, Field(discriminator="kind")
]


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
        """The horizon lies within the full length; draws of several steps are at temperature 1; no option is ours."""
        if self.steps_per_draw > 1 and self.temperature != 1:
            text = (
                f"steps_per_draw is {self.steps_per_draw} and temperature {self.temperature:g}: the ratio of new to "
                "old probabilities is taken at temperature 1; set one of the two to 1"
            )
            yield ("steps_per_draw", "temperature"), text
        taken = _SET_IN_TRAINING & self.engine.options.keys() if isinstance(self.engine, Vllm) else ()
        if taken:
            yield ("engine",), f"engine.options has {', '.join(sorted(taken))}, which training sets itself: leave out"
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

    def longest(self, num_steps: int) -> int:
        """Most new tokens of a rollout in a run of so many optimiser steps."""
        if self.horizon.kind == "adaptive" or self.whole_share:
            return self.max_new_tokens
        num_steps = max(1, num_steps - self.num_cold_steps)
        # Horizons only grow or only shrink.
        return max(self.horizon.at(step, num_steps, self.max_new_tokens) for step in (0, num_steps - 1))

    def short_warning(self, num_steps: int) -> str:
        """What happened to students of which every example ended at the horizon, with the remedy; "" for other runs.

        `num_steps` are those of the run. Source: docs/studies/on_policy.md.
        """
        if self.trace_share or (longest := self.longest(num_steps)) >= self.max_new_tokens:
            return ""
        return (
            f"No rollout goes beyond {longest} tokens, and students of such horizons have been seen to lose what comes "
            "later: reasoning, answer, and end; leave a tenth of the rollouts whole (rollout.whole_share: "
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
        horizon = _LABELS[self.horizon.kind].format_map(self.horizon.model_dump())
        return ", ".join([f"rollout {horizon}", *cold, *shown])
