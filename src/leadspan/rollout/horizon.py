"""Horizons: the number of new tokens after which a rollout ends, for each step.

A horizon is a frozen settings object with one pure method, from the number of the step to the number of tokens. It has
no state, so a resumed run has the same horizons as one without a break. The adaptive one follows from the overlaps of
the steps before, which the record of rollouts stores.

**Sources**: a fixed budget, ESR (arXiv 2605.27028, N = 100); a share of the full length, TOPD, and stairs, POPD (arXiv
2605.31490); linear growth in steps of 256 tokens, Reasoning Prefixes (arXiv 2602.15260); by overlap, after Prune-OPD
(arXiv 2605.07804), which ends single rollouts by that of the `k` likeliest tokens.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from leadspan.faults import Rule
from leadspan.settings import Settings

Tokens = Annotated[int, Field(ge=1)]


class FixedHorizon(Settings):
    """The same number of tokens in every step."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 256
    """New tokens."""

    @property
    def label(self) -> str:
        """The tokens."""
        return f"{self.tokens}"

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

    @property
    def label(self) -> str:
        """The share."""
        return f"share {self.share:g}"

    def at(self, step: int, num_steps: int, budget: int) -> int:
        """`max(1, floor(share * budget))`.

        >>> ShareHorizon(share=0.1).at(0, 10, 2048)
        204
        """
        # The decimal as written: 0.29 * 100 is below 29 in binary.
        return max(1, int(Fraction(str(self.share)) * budget))


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

    @property
    def label(self) -> str:
        """From where to where."""
        return f"{self.start}-{self.end}"

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

    @property
    def label(self) -> str:
        """Start, rise, and width of a stair."""
        return f"{self.start} + {self.rise} every {self.every} steps"

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

    @property
    def label(self) -> str:
        """Where it begins, and between which overlaps it stays."""
        return f"adaptive from {self.start}, overlap {self.low:g}-{self.high:g}"

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
