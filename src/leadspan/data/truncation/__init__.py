"""Truncation policies: which tokens of a rendered trace enter the forward pass.

A policy is a frozen settings object with one pure method, `spans`, from the section borders of a whole sequence to the
half-open token ranges that are kept. Sections are found before the cut and never change; what a kept token weighs is
decided by the supervision, not here.

Notation: `T` tokens in all, `P` of them prompt, `C` chain of thought (tags included), `p` the kept proportion.

Source: the lead-span rule is Chen et al., arXiv 2512.21002, "lead-span proportion"; `tail` and `middle` are its right
and middle halves with the prompt under a switch of its own.
"""

# ruff: noqa: F401  # other rooms import the names of this one from here
from leadspan.data.truncation.combined import (
    AnyPolicy,
    Mix,
    Schedule,
    SinglePolicy,
    cut_example,
    equal_window,
    with_ends,
    with_proportion,
)
from leadspan.data.truncation.policy import Cut, Policy, Sections, Span, kept_tokens
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
