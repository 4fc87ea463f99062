"""What every policy is: section borders in, kept token ranges out."""

import math
import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from leadspan.settings import Settings

Span = tuple[int, int]
Proportion = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Sections:
    """Borders of the sections of one rendered conversation, in tokens.

    Attributes:
        prompt_end: PROMPT is `[0, prompt_end)`: everything through the assistant header.
        think_end: First token of the closing think tag.
        cot_end: COT is `[prompt_end, cot_end)`, from the opening think tag through the closing one.
        num_tokens: ANSWER is `[cot_end, num_tokens)`, end-of-turn included.
        stop: Index of the end-of-turn token.
        steps: First token of every step of the chain of thought after the first, ascending.
        first_answer: Last token of the chain of thought's first statement of the right answer; None where no
            reference answer is known or none is stated.
    """

    prompt_end: int
    think_end: int
    cot_end: int
    num_tokens: int
    stop: int
    steps: tuple[int, ...] = ()
    first_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """What a policy keeps of one sequence.

    Attributes:
        spans: Kept token ranges, ascending, not overlapping.
        append_stop: Whether an end-of-turn token follows the last kept token, with a hard target only.
        unweighted: A kept range that gets no loss whatever the supervision, or None.
        dropped: Why the policy has no use for the sequence, where it keeps nothing for a reason of its own.
    """

    spans: tuple[Span, ...]
    append_stop: bool = False
    unweighted: Span | None = None
    dropped: str | None = None


class Policy(Settings):
    """Base of the policies."""

    @abstractmethod
    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """Token ranges to keep; empty ones are allowed and dropped by `cut`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name with the parameters that matter, for tables."""

    @property
    def stages(self) -> "tuple[Policy, ...]":
        """The policies of a run's equal parts, in order; itself unless it changes over training."""
        return (self,)

    @property
    def needs_first_answer(self) -> bool:
        """Whether the sections must say where the right answer is first stated."""
        return False

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy to one sequence."""
        return Cut(tidy(self.spans(sections, rng)))


class EndsEarly(Policy):
    """A policy whose result usually lacks the end of the conversation."""

    stop: Literal["none", "append_eos"] = "none"
    """`append_eos`: where the end-of-turn token was cut, append one with a hard target (cross-entropy only, since the
    teacher would not stop there)."""

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; append an end-of-turn token if asked for and lost."""
        spans = tidy(self.spans(sections, rng))
        lost = not any(start <= sections.stop < end for start, end in spans)
        return Cut(spans, append_stop=lost and self.stop == "append_eos")


def kept_tokens(p: float, num_tokens: int) -> int:
    """`max(1, floor(p * num_tokens))`, the rule of the paper.

    >>> kept_tokens(0.5, 7), kept_tokens(0.1, 3), kept_tokens(1.0, 7)
    (3, 1, 7)
    """
    return max(1, math.floor(p * num_tokens))


def align_end(end: int, sections: Sections, align: Literal["token", "step"]) -> int:
    """Move a cut inside the chain of thought back to a step border, or to the end of the prompt."""
    if align == "token" or not sections.prompt_end < end < sections.cot_end:
        return end
    return max((step for step in sections.steps if step <= end), default=sections.prompt_end)


def tidy(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Drop empty spans and join adjacent ones."""
    joined: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
