"""Policies that keep another part than the beginning: the ends, the centre, a random window."""

import random
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from leadspan.data.truncation.policy import EndsEarly, Policy, Proportion, Sections, Span, kept_tokens
from leadspan.faults import Rule

NumSteps = Annotated[int, Field(ge=1)]


class Tail(Policy):
    """The last tokens, as many as `lead` at the same `p` would keep; the prompt counts towards them when it is kept."""

    kind: Literal["tail"] = "tail"
    p: Proportion = 0.5
    """Share of the whole sequence."""
    keep_prompt: bool = True
    """Keep the whole prompt and fill up from the end."""

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[T - k, T)` with `k = max(1, floor(p T))`, or `[0, P)` and `[T - (k - P), T)`."""
        num_kept, total = kept_tokens(self.p, sections.num_tokens), sections.num_tokens
        if not self.keep_prompt:
            return ((total - num_kept, total),)
        return ((0, sections.prompt_end), (total - max(0, num_kept - sections.prompt_end), total))


class Middle(EndsEarly):
    """The central tokens, as many as `lead` at the same `p` would keep; the prompt counts when it is kept."""

    kind: Literal["middle"] = "middle"
    p: Proportion = 0.5
    """Share of the whole sequence."""
    keep_prompt: bool = True
    """Keep the whole prompt and take the rest from the centre of what follows it."""

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[(T - k) // 2, (T + k) // 2)`, or the same of what follows the prompt with `k - P`."""
        start = sections.prompt_end if self.keep_prompt else 0
        rest = sections.num_tokens - start
        num_kept = max(0, kept_tokens(self.p, sections.num_tokens) - start)
        first = start + (rest - num_kept) // 2
        return ((0, start), (first, first + num_kept))


class RandomWindow(EndsEarly):
    """The whole prompt and a random contiguous window of the chain of thought: the equal-length control of `lead`.

    The window has `max(1, floor(p T)) - P` tokens, at most `C`, and is drawn once per example from the seed.
    """

    kind: Literal["random_window"] = "random_window"
    p: Proportion = 0.5
    """Share of the whole sequence, as of `lead`."""

    _keeps_answer: ClassVar[bool] = False

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P)` and `[a, a + w)`, `a` uniform over the positions that fit."""
        # The window replaces a lead of the same `p`, whose tokens include the prompt: hence the subtraction.
        cot = sections.cot_end - sections.prompt_end
        width = min(cot, max(0, kept_tokens(self.p, sections.num_tokens) - sections.prompt_end))
        start = sections.prompt_end + rng.randint(0, cot - width)
        return ((0, sections.prompt_end), (start, start + width))


class Endpoints(Policy):
    """The prompt, the first and the last steps of the chain of thought, its closing tag, and the answer.

    Only whole steps are kept, at least one at either end; where the two ends meet, the sequence stays whole.
    """

    kind: Literal["endpoints"] = "endpoints"
    p: Proportion | None = None
    """Share of the chain of thought: from the beginning as many steps as fit into half of `floor(p C)` tokens, from the
    end as many as fit into what these leave; all at 1. Give exactly one of `p` and `num_steps`."""
    num_steps: tuple[NumSteps, NumSteps] | None = None
    """Steps kept from the beginning and from the end."""

    _needs_steps: ClassVar[bool] = True

    def conflicts(self) -> Iterator[Rule]:
        """Exactly one amount is given."""
        if (self.p is None) == (self.num_steps is None):
            yield ("p", "num_steps"), "give exactly one of p and num_steps"

    @property
    def label(self) -> str:
        """`endpoints p`, or `endpoints FIRST+LAST steps`."""
        return super().label if self.num_steps is None else "endpoints {}+{} steps".format(*self.num_steps)

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, end of the first steps)` and `[start of the last steps, T)`."""
        marks = [sections.prompt_end, *(s for s in sections.steps if s < sections.think_end), sections.think_end]
        final = len(marks) - 1
        # Borders after the first steps and before the last ones, as indices into `marks`.
        if self.num_steps is not None:
            first, last = min(self.num_steps[0], final), max(0, final - self.num_steps[1])
        else:
            # Half of the tokens for the beginning, rounded down to whole steps; what these leave goes to the end.
            room = kept_tokens(self.p or 0.0, sections.cot_end - sections.prompt_end)
            first = max(1, max((i for i, mark in enumerate(marks) if mark - marks[0] <= room // 2), default=0))
            num_left = room - (marks[first] - marks[0])
            last = min((i for i, mark in enumerate(marks) if marks[-1] - mark <= num_left), default=final)
            last = min(final - 1, last)
        # Where the two ends meet, nothing between them is left out.
        return ((0, marks[first]), (marks[max(first, last)], sections.num_tokens))
