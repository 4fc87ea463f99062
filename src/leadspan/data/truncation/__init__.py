"""Truncation policies: which tokens of a rendered trace enter the forward pass, and the policies made of policies.

A policy is a frozen settings object with one pure method, `spans`, from the section borders of a whole sequence to the
half-open token ranges that are kept. Sections are found before the cut and never change; what a kept token weighs is
decided by the supervision, not here. `policy.py` has what every policy is, `single.py` those of one rule; here are a
policy for most traces with some whole, and a proportion that changes over training.

Notation: `T` tokens in all, `P` of them prompt, `C` chain of thought (tags included), `p` the kept proportion.

Source: the lead-span rule is Chen et al., arXiv 2512.21002, "lead-span proportion"; `tail` and `middle` are its right
and middle halves with the prompt under a switch of its own.
"""

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from leadspan.data.truncation.policy import Cut, Policy, Proportion, Sections, Span, kept_tokens  # noqa: F401  # used elsewhere
from leadspan.data.truncation.single import (
    Budget,
    Endpoints,
    Full,
    Lead,
    LeadAnswer,
    LeadCot,
    Middle,
    PostConclusion,
    RandomWindow,
    Tail,
)
from leadspan.faults import Rule

PolicyT = TypeVar("PolicyT", bound=Policy)
_Single = Full | Lead | LeadCot | LeadAnswer | Budget | Tail | Middle | Endpoints | PostConclusion | RandomWindow
SinglePolicy = Annotated[_Single, Field(discriminator="kind")]


class Mix(Policy):
    """Any policy for most traces; a fixed share of them, drawn once per example from the seed, stays whole."""

    kind: Literal["mix"] = "mix"
    policy: SinglePolicy
    """Policy of all other traces."""
    whole_share: float = Field(default=0.1, gt=0, lt=1)
    """Probability of a trace to stay whole."""

    @property
    def label(self) -> str:
        """`mix share + policy`."""
        return f"mix {1 - self.whole_share:g} {self.policy.label}"

    @property
    def family(self) -> str:
        """`mix share + family of the policy`."""
        return f"mix {1 - self.whole_share:g} {self.policy.family}"

    @property
    def proportion(self) -> float | None:
        """That of its policy."""
        return self.policy.proportion

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """Those of the drawn policy."""
        return self.cut(sections, rng).spans

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Draw, then apply."""
        # The share is drawn first, so that the same traces stay whole under every inner policy.
        return (Full() if rng.random() < self.whole_share else self.policy).cut(sections, rng)


class Schedule(Policy):
    """A policy whose `p` changes over training, in equal steps over equal parts of the run.

    Stage `k` of `K` (from 0) has `p_k = start + (end - start) k / (K - 1)` and an equal share of the optimiser steps.
    """

    kind: Literal["schedule"] = "schedule"
    policy: Annotated[
        Lead | LeadCot | LeadAnswer | Tail | Middle | Endpoints | RandomWindow | Mix, Field(discriminator="kind")
    ]
    """What is scheduled; its own `p` (of a `mix`, that of its policy) is replaced."""
    start: Proportion
    """`p` of the first stage."""
    end: Proportion
    """`p` of the last stage."""
    num_stages: int = Field(default=4, ge=2, le=1000)
    """Stages; each has its own cut of every trace."""

    def conflicts(self) -> Iterator[Rule]:
        """Something changes."""
        if self.policy.proportion is None:
            yield ("policy",), f"policy {self.policy.family} has no p that could change; give it a p, or take another"
        if self.start == self.end:
            text = f"start and end are both {self.start:g}, so nothing changes; use the policy itself as cut"
            yield ("start", "end"), text

    @property
    def label(self) -> str:
        """`schedule kind start-end`."""
        return f"schedule {self.policy.family} {self.start:g}-{self.end:g}"

    @property
    def stages(self) -> tuple[Policy, ...]:
        """One policy per stage."""
        last = self.num_stages - 1
        # In fractions of what was written, and not in binary, which loses a token where `p T` is whole (`kept_tokens`).
        start, end = Fraction(repr(self.start)), Fraction(repr(self.end))
        proportions = [float((start * (last - k) + end * k) / last) for k in range(last + 1)]
        return tuple(with_proportion(self.policy, p) for p in proportions)

    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """All that is kept at any stage."""
        # As in training: the cut of every stage draws from the same seed again.
        state = rng.getstate()
        spans: list[Span] = []
        for stage in self.stages:
            rng.setstate(state)
            spans += stage.cut(sections, rng).spans
        return tuple(sorted(spans))


AnyPolicy = Annotated[_Single | Mix | Schedule, Field(discriminator="kind")]


def with_ends(policy: Policy) -> tuple[AnyPolicy, ...]:
    """What shows a student of a cut how answers end: a share of the traces whole; after a lead, the answer, too.

    **Source** of the share: docs/studies/pretrained.md: a quarter was enough, a tenth for one of three students.
    """
    if isinstance(policy, Full | Mix | Schedule):
        return ()
    mixed = Mix.model_validate({"policy": policy.model_dump(), "whole_share": 0.25})
    return (mixed, LeadAnswer(p=policy.p)) if isinstance(policy, Lead | LeadCot) and policy.p else (mixed,)


def with_proportion(policy: PolicyT, p: float) -> PolicyT:
    """The same policy with another `p`; of a mix, its policy's.

    >>> with_proportion(Mix(policy=Lead(p=0.5)), 0.25).label
    'mix 0.9 lead 0.25'

    Raises:
        ValueError: The policy has no `p`.
    """
    if isinstance(policy, Mix):
        return policy.model_copy(update={"policy": with_proportion(policy.policy, p)})
    if policy.proportion is None:
        raise ValueError(f"{policy.label} has no p")
    return policy.model_copy(update={"p": p})


def equal_window(policy: Policy) -> Policy | None:
    """The random window that keeps as many tokens as a lead, of a mix that in place of its lead; None for others.

    >>> equal_window(Mix(policy=Lead(p=0.5))).label
    'mix 0.9 random_window 0.5'
    """
    if isinstance(policy, Lead):
        return RandomWindow(p=policy.p, align=policy.align, stop=policy.stop)
    if isinstance(policy, Mix) and (window := equal_window(policy.policy)):
        return policy.model_copy(update={"policy": window})
    return None


def cut_example(policy: Policy, sections: Sections, example_id: str, seed: int) -> Cut:
    """Apply a policy to one example; random policies draw from `(seed, example_id)` only, never from order.

    >>> cut_example(Lead(p=0.5), Sections(4, 8, 9, 12, 11), "an-example", seed=0).spans
    ((0, 6),)
    """
    return policy.cut(sections, random.Random(f"{seed}:{example_id}"))
