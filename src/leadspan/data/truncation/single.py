"""Policies of one rule: the lead span and its relatives, then the ends, the centre and a random window."""

import random
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from leadspan.data.truncation.policy import (
    STATES_NO_ANSWER,
    Cut,
    EndsEarly,
    Policy,
    Proportion,
    Sections,
    Span,
    align_end,
    kept_tokens,
    tidy,
)
from leadspan.faults import Rule

NumSteps = Annotated[int, Field(ge=1)]


class Full(Policy):
    """Keep everything."""

    kind: Literal["full"] = "full"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, T)`."""
        return ((0, sections.num_tokens),)


class Lead(EndsEarly):
    """The lead span: the first `max(1, floor(p T))` tokens of the whole sequence (Chen et al., arXiv 2512.21002)."""

    kind: Literal["lead"] = "lead"
    p: Proportion = 0.5
    """Lead-span proportion."""
    align: Literal["token", "step"] = "token"
    """`step`: move a cut inside the chain of thought back to the last step border."""

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, max(1, floor(p T)))`."""
        return ((0, align_end(kept_tokens(self.p, sections.num_tokens), sections, self.align)),)


class LeadCot(EndsEarly):
    """The whole prompt and the first `max(1, floor(p C))` tokens of the chain of thought."""

    kind: Literal["lead_cot"] = "lead_cot"
    p: Proportion = 0.5
    """Share of the chain of thought."""
    align: Literal["token", "step"] = "token"
    """`step`: move the cut back to the last step border."""

    _keeps_answer: ClassVar[bool] = False

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P + max(1, floor(p C)))`."""
        end = sections.prompt_end + kept_tokens(self.p, sections.cot_end - sections.prompt_end)
        return ((0, align_end(end, sections, self.align)),)


class LeadAnswer(Policy):
    """The whole prompt, a lead of the chain of thought, its closing tag, and the whole answer."""

    kind: Literal["lead_answer"] = "lead_answer"
    p: Proportion | None = None
    """Share of the chain of thought; give exactly one of `p`, `num_tokens`, `p_range`."""
    num_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the chain of thought."""
    p_range: tuple[Proportion, Proportion] | None = None
    """Share of the chain of thought drawn per example, uniformly between the two."""
    align: Literal["token", "step"] = "token"
    """`step`: move the cut back to the last step border."""
    stop: Literal["none", "mask_think_end"] = "none"
    """`mask_think_end`: where the chain of thought was cut, its closing tag has no loss, so that the student
    is not taught to end thinking early."""

    _amounts: ClassVar[tuple[str, ...]] = ("p", "num_tokens", "p_range")

    def conflicts(self) -> Iterator[Rule]:
        """Exactly one amount is given, and a range ascends."""
        yield from super().conflicts()
        if self.p_range is not None and self.p_range[0] > self.p_range[1]:
            yield ("p_range",), f"p_range {self.p_range}: the first must not exceed the second"

    @property
    def label(self) -> str:
        """`lead_answer` with its amount."""
        if self.p_range is not None:
            return "lead_answer {:g}-{:g}".format(*self.p_range)
        return super().label if self.p is not None else f"lead_answer {self.num_tokens} tokens"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P + lead of C)` and `[closing tag, T)`."""
        num_kept = self.num_tokens
        if num_kept is None:
            share = rng.uniform(*self.p_range) if self.p_range is not None else self.p or 0.0
            num_kept = kept_tokens(share, sections.cot_end - sections.prompt_end)
        # Never into the closing tag: the second span begins there, and `tidy` joins the two when nothing is cut.
        end = min(align_end(sections.prompt_end + num_kept, sections, self.align), sections.think_end)
        return ((0, end), (sections.think_end, sections.num_tokens))

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; with `mask_think_end` the closing tag after a cut chain of thought has no loss."""
        spans = tidy(self.spans(sections, rng))
        masked = self.stop == "mask_think_end" and len(spans) > 1
        return Cut(spans, unweighted=(sections.think_end, sections.cot_end) if masked else None)


class Budget(EndsEarly):
    """The first `num_tokens` tokens of the whole sequence."""

    kind: Literal["budget"] = "budget"
    num_tokens: int = Field(ge=1)
    """Tokens to keep."""
    align: Literal["token", "step"] = "token"
    """`step`: move a cut inside the chain of thought back to the last step border."""

    @property
    def label(self) -> str:
        """`budget N`."""
        return f"budget {self.num_tokens}"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, min(N, T))`."""
        return ((0, align_end(min(self.num_tokens, sections.num_tokens), sections, self.align)),)


class PostConclusion(Policy):
    """The prompt and the chain of thought through the step that first states the right answer.

    What follows that step in the chain of thought, mostly checks and second thoughts, is cut.
    """

    kind: Literal["post_conclusion"] = "post_conclusion"
    ending: Literal["answer", "none", "append_eos"] = "answer"
    """`answer`: the closing tag and the answer follow; `none`: nothing; `append_eos`: an end-of-turn token with a hard
    target."""
    if_absent: Literal["drop", "whole"] = "drop"
    """A trace without a reference answer, or whose chain of thought never states it: leave it out (counted), or keep it
    whole."""

    _needs_first_answer: ClassVar[bool] = True
    # The step that states the answer is kept whole.
    _needs_steps: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """`post_conclusion`, with what differs from its defaults."""
        more = [] if self.ending == "answer" else [f"ending {self.ending}"]
        return ", ".join(["post_conclusion", *more, *(["else whole"] if self.if_absent == "whole" else [])])

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, end of the step)` and, with `ending: answer`, `[closing tag, T)`."""
        if sections.first_answer is None:
            return ((0, sections.num_tokens),) if self.if_absent == "whole" else ()
        # The next step begins where the stating one ends; in the last step, that is the closing tag.
        end = min((step for step in sections.steps if step > sections.first_answer), default=sections.think_end)
        if self.ending == "answer":
            return ((0, end), (sections.think_end, sections.num_tokens))
        return ((0, end),)

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; append an end-of-turn token if the settings say so and it was lost."""
        spans = tidy(self.spans(sections, rng))
        if not spans:
            return Cut((), dropped=STATES_NO_ANSWER)
        return Cut(spans, append_stop=self.ending == "append_eos" and spans[-1][1] <= sections.stop)


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
    align: Literal["token", "step"] = "token"
    """`step`: as many tokens as a `lead` that ends at the last step border."""

    _keeps_answer: ClassVar[bool] = False

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P)` and `[a, a + w)`, `a` uniform over the positions that fit."""
        # The window replaces a lead of the same `p`, whose tokens include the prompt: hence the subtraction.
        cot = sections.cot_end - sections.prompt_end
        end_of_lead = align_end(kept_tokens(self.p, sections.num_tokens), sections, self.align)
        width = min(cot, max(0, end_of_lead - sections.prompt_end))
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
    _amounts: ClassVar[tuple[str, ...]] = ("p", "num_steps")

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
