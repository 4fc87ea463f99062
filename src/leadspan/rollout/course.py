"""Which prompts, traces and lengths every step of a run has, decided by its number alone.

Only overlaps carry over from step to step: an adaptive horizon follows them, and the record stores them. So a resumed
run has the same steps as one without a break. Shares are exact over the run: of the first `n` items, `floor(share * n)`
are of the kind.
"""

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from leadspan.rollout.settings import AdaptiveHorizon, RolloutSettings


@dataclass(frozen=True, slots=True)
class Turn:
    """One rollout to draw.

    Attributes:
        prompt: Number of the prompt.
        sample: Number of the sample among those of the prompt in this step.
        cap: Most new tokens.
        is_whole: Whether it may reach the full length, whatever the horizon.
    """

    prompt: int
    sample: int
    cap: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class StepCourse:
    """The content of a step: rollouts, ended after `horizon` new tokens unless whole, and indices of traces."""

    horizon: int
    turns: tuple[Turn, ...]
    traces: tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """The steps of a run.

    Attributes:
        settings: Shares and horizon.
        traces: Indices of the training examples that may be mixed in.
        examples_per_step: Examples of a step, all ranks; a multiple of the samples of a prompt.
        seed: Seed of the order.
    """

    settings: RolloutSettings
    num_prompts: int
    traces: Sequence[int]
    examples_per_step: int
    num_steps: int
    seed: int

    def step(self, number: int, overlaps: Sequence[float | None] = ()) -> StepCourse:
        """The content of a step.

        `overlaps` are those of the steps before; an adaptive horizon follows them.
        """
        samples, per_step, cold = self.settings.samples_per_prompt, self._groups, self.settings.num_cold_steps
        rule, budget = self.settings.horizon, self.settings.max_new_tokens
        if isinstance(rule, AdaptiveHorizon):
            horizon = rule.after(overlaps, budget)
        else:
            horizon = rule.at(max(0, number - cold), self.num_steps - cold, budget)
        of_traces, before = self._trace_groups(number + 1), self._trace_groups(number)
        # Rollouts are numbered on from the steps before, so that the shares hold over the run and not step by step.
        first = number * per_step - before  # groups of rollouts in the steps before
        turns, num_samples = [], Counter[int]()  # of each prompt: at the border of two passes it may come twice
        for group in range(first, first + per_step - (of_traces - before)):
            prompt = _in_turn(self.num_prompts, group, f"{self.seed}:prompts")
            for sample in range(samples):
                rollout = group * samples + sample
                # The one at which the count of whole rollouts goes up.
                is_whole = _first(self.settings.whole_share, rollout + 1) > _first(self.settings.whole_share, rollout)
                cap = self.settings.max_new_tokens if is_whole else horizon
                turns.append(Turn(prompt, num_samples[prompt], cap, is_whole))
                num_samples[prompt] += 1
        # A group of traces has as many examples as a prompt has samples, so steps of any mix are equally large.
        indices = range(before * samples, of_traces * samples)
        traces = tuple(self.traces[_in_turn(len(self.traces), at, f"{self.seed}:traces")] for at in indices)
        return StepCourse(horizon, tuple(turns), traces)

    def _trace_groups(self, num_steps: int) -> int:
        """Groups of traces in the first steps: all groups of a cold start, and a share of those after it."""
        cold = min(num_steps, self.settings.num_cold_steps)
        return cold * self._groups + _first(self.settings.trace_share, (num_steps - cold) * self._groups)

    @property
    def _groups(self) -> int:
        """Prompts, or as many traces as a prompt has samples, in a step."""
        return self.examples_per_step // self.settings.samples_per_prompt


def _first(share: float, number: int) -> int:
    """How many of the first `number` items are of a kind with this share."""
    # The decimal as written: 0.29 * 100 is below 29 in binary.
    return int(Fraction(str(share)) * number)


def _in_turn(number: int, at: int, seed: str) -> int:
    """Item `at` of an endless stream over `number` items, reshuffled with every pass."""
    passes, index = divmod(at, number)
    return _order(number, f"{seed}:{passes}")[index]


# Prompts and traces, each at the border of two passes: four orders are in use at a time.
@functools.lru_cache(maxsize=4)
def _order(number: int, seed: str) -> tuple[int, ...]:
    order = list(range(number))
    random.Random(seed).shuffle(order)
    return tuple(order)
