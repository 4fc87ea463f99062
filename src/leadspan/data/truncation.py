"""Truncation policies: which tokens of a rendered trace enter the forward pass.

A policy is a frozen settings object with one pure method, `spans`, from the section borders of a whole sequence to the
half-open token ranges that are kept. Sections are found before the cut and never change; what a kept token weighs is
decided by the supervision, not here.

Notation: `T` tokens in all, `P` of them prompt, `C` chain of thought (tags included), `p` the kept proportion.

Source: the lead-span rule is Chen et al., arXiv 2512.21002, "lead-span proportion"; `tail` and `middle` are its right
and middle halves with the prompt under a switch of its own.
"""

import math
import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    """

    prompt_end: int
    think_end: int
    cot_end: int
    num_tokens: int
    stop: int
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cut:
    """What a policy keeps of one sequence.

    Attributes:
        spans: Kept token ranges, ascending, not overlapping.
        append_stop: Whether an end-of-turn token follows the last kept token, with a hard target only.
        unweighted: A kept range that gets no loss whatever the supervision, or None.
    """

    spans: tuple[Span, ...]
    append_stop: bool = False
    unweighted: Span | None = None


class Policy(Settings):
    """Base of the policies."""

    @abstractmethod
    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """Token ranges to keep; empty ones are allowed and dropped by `cut`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name with the parameters that matter, for tables."""

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy to one sequence."""
        return Cut(_tidy(self.spans(sections, rng)))


class _EndsEarly(Policy):
    """A policy whose result usually lacks the end of the conversation."""

    stop: Literal["none", "append_eos"] = "none"
    """`append_eos`: where the end-of-turn token was cut, append one with a hard target (cross-entropy only, since the
    teacher would not stop there)."""

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; append an end-of-turn token if asked for and lost."""
        spans = _tidy(self.spans(sections, rng))
        lost = not any(start <= sections.stop < end for start, end in spans)
        return Cut(spans, append_stop=lost and self.stop == "append_eos")


class Full(Policy):
    """Keep everything."""

    kind: Literal["full"] = "full"
    """Tag."""

    @property
    def label(self) -> str:
        """`full`."""
        return "full"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, T)`."""
        return ((0, sections.num_tokens),)


class Lead(_EndsEarly):
    """The lead span: the first `max(1, floor(p T))` tokens of the whole sequence (Chen et al., arXiv 2512.21002)."""

    kind: Literal["lead"] = "lead"
    """Tag."""
    p: Proportion = 0.5
    """Lead-span proportion."""
    align: Literal["token", "step"] = "token"
    """`step`: move a cut inside the chain of thought back to the last step border."""

    @property
    def label(self) -> str:
        """`lead p`."""
        return f"lead {self.p:g}"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, max(1, floor(p T)))`."""
        return ((0, _align(kept_tokens(self.p, sections.num_tokens), sections, self.align)),)


class LeadCot(_EndsEarly):
    """The whole prompt and the first `max(1, floor(p C))` tokens of the chain of thought."""

    kind: Literal["lead_cot"] = "lead_cot"
    """Tag."""
    p: Proportion = 0.5
    """Share of the chain of thought."""
    align: Literal["token", "step"] = "token"
    """`step`: move the cut back to the last step border."""

    @property
    def label(self) -> str:
        """`lead_cot p`."""
        return f"lead_cot {self.p:g}"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P + max(1, floor(p C)))`."""
        end = sections.prompt_end + kept_tokens(self.p, sections.cot_end - sections.prompt_end)
        return ((0, _align(end, sections, self.align)),)


class LeadAnswer(Policy):
    """The whole prompt, a lead of the chain of thought, its closing tag, and the whole answer."""

    kind: Literal["lead_answer"] = "lead_answer"
    """Tag."""
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

    @model_validator(mode="after")
    def _one_amount(self) -> "LeadAnswer":
        given = [name for name in ("p", "num_tokens", "p_range") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of p, num_tokens, p_range (given: {', '.join(given) or 'none'})")
        if self.p_range is not None and self.p_range[0] > self.p_range[1]:
            raise ValueError(f"p_range {self.p_range}: the first must not exceed the second")
        return self

    @property
    def label(self) -> str:
        """`lead_answer` with its amount."""
        if self.p_range is not None:
            return f"lead_answer {self.p_range[0]:g}-{self.p_range[1]:g}"
        return f"lead_answer {self.p:g}" if self.p is not None else f"lead_answer {self.num_tokens} tokens"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P + lead of C)` and `[closing tag, T)`."""
        end = min(self._cot_end(sections, rng), sections.think_end)
        return ((0, end), (sections.think_end, sections.num_tokens))

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; the closing tag loses its weight if asked for and the chain of thought was cut."""
        spans = _tidy(self.spans(sections, rng))
        masked = self.stop == "mask_think_end" and len(spans) > 1
        return Cut(spans, unweighted=(sections.think_end, sections.cot_end) if masked else None)

    def _cot_end(self, sections: Sections, rng: random.Random) -> int:
        if self.num_tokens is not None:
            end = sections.prompt_end + self.num_tokens
        else:
            share = rng.uniform(*self.p_range) if self.p_range is not None else self.p or 0.0
            end = sections.prompt_end + kept_tokens(share, sections.cot_end - sections.prompt_end)
        return _align(end, sections, self.align)


class Budget(_EndsEarly):
    """The first `num_tokens` tokens of the whole sequence."""

    kind: Literal["budget"] = "budget"
    """Tag."""
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
        return ((0, _align(min(self.num_tokens, sections.num_tokens), sections, self.align)),)


class Tail(Policy):
    """The last tokens, as many as `lead` at the same `p` would keep; the prompt counts towards them when it is kept."""

    kind: Literal["tail"] = "tail"
    """Tag."""
    p: Proportion = 0.5
    """Share of the whole sequence."""
    keep_prompt: bool = True
    """Keep the whole prompt and fill up from the end."""

    @property
    def label(self) -> str:
        """`tail p`, and whether the prompt is lost."""
        return f"tail {self.p:g}" + ("" if self.keep_prompt else " no prompt")

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[T - k, T)` with `k = max(1, floor(p T))`, or `[0, P)` and `[T - (k - P), T)`."""
        kept, total = kept_tokens(self.p, sections.num_tokens), sections.num_tokens
        if not self.keep_prompt:
            return ((total - kept, total),)
        return ((0, sections.prompt_end), (total - max(0, kept - sections.prompt_end), total))


class Middle(_EndsEarly):
    """The central tokens, as many as `lead` at the same `p` would keep; the prompt counts when it is kept."""

    kind: Literal["middle"] = "middle"
    """Tag."""
    p: Proportion = 0.5
    """Share of the whole sequence."""
    keep_prompt: bool = True
    """Keep the whole prompt and take the rest from the centre of what follows it."""

    @property
    def label(self) -> str:
        """`middle p`, and whether the prompt is lost."""
        return f"middle {self.p:g}" + ("" if self.keep_prompt else " no prompt")

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[(T - k) // 2, (T + k) // 2)`, or the same of what follows the prompt with `k - P`."""
        start = sections.prompt_end if self.keep_prompt else 0
        rest = sections.num_tokens - start
        kept = max(0, kept_tokens(self.p, sections.num_tokens) - start)
        first = start + (rest - kept) // 2
        return ((0, start), (first, first + kept))


class RandomWindow(_EndsEarly):
    """The whole prompt and a random contiguous window of the chain of thought: the equal-length control of `lead`.

    The window has `max(1, floor(p T)) - P` tokens, at most `C`, and is drawn once per example from the seed.
    """

    kind: Literal["random_window"] = "random_window"
    """Tag."""
    p: Proportion = 0.5
    """Share of the whole sequence, as of `lead`."""

    @property
    def label(self) -> str:
        """`random_window p`."""
        return f"random_window {self.p:g}"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """`[0, P)` and `[a, a + w)`, `a` uniform over the positions that fit."""
        cot = sections.cot_end - sections.prompt_end
        width = min(cot, max(0, kept_tokens(self.p, sections.num_tokens) - sections.prompt_end))
        start = sections.prompt_end + rng.randint(0, cot - width)
        return ((0, sections.prompt_end), (start, start + width))


SinglePolicy = Annotated[
    Full | Lead | LeadCot | LeadAnswer | Budget | Tail | Middle | RandomWindow, Field(discriminator="kind")
]


class Mix(Policy):
    """Any policy for most traces; a stated share, drawn once per example from the seed, stays whole."""

    kind: Literal["mix"] = "mix"
    """Tag."""
    policy: SinglePolicy
    """What the others get."""
    whole_share: float = Field(default=0.1, gt=0, lt=1)
    """Probability of a trace to stay whole."""

    @property
    def label(self) -> str:
        """`mix share + policy`."""
        return f"mix {1 - self.whole_share:g} {self.policy.label}"

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """Those of the drawn policy."""
        return self.cut(sections, rng).spans

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Draw, then apply."""
        chosen = Full() if rng.random() < self.whole_share else self.policy
        return chosen.cut(sections, rng)


AnyPolicy = Annotated[
    Full | Lead | LeadCot | LeadAnswer | Budget | Tail | Middle | RandomWindow | Mix,
    Field(discriminator="kind"),
]


def kept_tokens(p: float, num_tokens: int) -> int:
    """`max(1, floor(p * num_tokens))`, the rule of the paper.

    >>> kept_tokens(0.5, 7), kept_tokens(0.1, 3), kept_tokens(1.0, 7)
    (3, 1, 7)
    """
    return max(1, math.floor(p * num_tokens))


def cut_example(policy: Policy, sections: Sections, example_id: str, seed: int) -> Cut:
    """Apply a policy to one example; random policies draw from `(seed, example_id)` only, never from order.

    >>> cut_example(Lead(p=0.5), Sections(4, 8, 9, 12, 11), "an-example", seed=0).spans
    ((0, 6),)
    """
    return policy.cut(sections, random.Random(f"{seed}:{example_id}"))


def _align(end: int, sections: Sections, align: Literal["token", "step"]) -> int:
    """Move a cut inside the chain of thought back to a step border, or to the end of the prompt."""
    if align == "token" or not sections.prompt_end < end < sections.cot_end:
        return end
    return max((step for step in sections.steps if step <= end), default=sections.prompt_end)


def _tidy(spans: tuple[Span, ...]) -> tuple[Span, ...]:
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
