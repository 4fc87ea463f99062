"""Token selection: which of the weighted positions get the loss.

Positions of one example with one weight are a group, and of every group the same share is selected. So the number
selected and the sum of their weights are known before any model has run, whatever the packing, and the loss is divided
by the weight that was really learnt. An appended end-of-turn token is always learnt.
"""

import random
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from leadspan.data.truncation import kept_tokens
from leadspan.settings import Settings


class _Selection(Settings):
    share: float = Field(gt=0, lt=1)
    """Share of the weighted positions of every example: of `m` of one weight `max(1, floor(share * m))`."""


class _Scored(_Selection):
    keep: Literal["highest", "lowest"] = "highest"
    """Which end of the scores is selected; among equal scores the earlier positions are."""


class RandomTokens(_Selection):
    """A random share, drawn once per example from the seed: the control of the other selections."""

    kind: Literal["random"] = "random"


class ByStudentEntropy(_Scored):
    """By the entropy of the student's distribution at the position, in nats, at temperature 1."""

    kind: Literal["student_entropy"] = "student_entropy"


class ByTeacherEntropy(_Scored):
    """By the entropy of the teacher's distribution at the position, in nats, at temperature 1."""

    kind: Literal["teacher_entropy"] = "teacher_entropy"


class ByGap(_Scored):
    """By how much worse the student predicts the token: its cross-entropy less the teacher's, in nats.

    Source: the excess loss of Lin et al., arXiv 2404.07965, section 2.2, with the teacher as the reference model.
    """

    kind: Literal["gap"] = "gap"


class ByDivergence(_Scored):
    """By the divergence of the student from the teacher at the position, as the loss computes it."""

    kind: Literal["divergence"] = "divergence"


ScoredSelection = ByStudentEntropy | ByTeacherEntropy | ByGap | ByDivergence
TokenSelection = Annotated[RandomTokens | ScoredSelection, Field(discriminator="kind")]


def draw_tokens(weights: np.ndarray, selection: RandomTokens, example_id: str, seed: int) -> np.ndarray:
    """Weights of one example with those that were not drawn set to 0.

    Args:
        weights: Weight of every token, [n]; the draw depends on `(seed, example_id)` only.
        selection: The share.
        example_id: Identifies the example.
        seed: Seed of the run.
    """
    # A stream of its own: the policy draws from (seed, example_id), and the two draws must not be tied.
    rng = random.Random(f"{seed}:{example_id}:tokens")
    selected = np.zeros_like(weights)
    for weight in np.unique(weights[weights > 0]):
        group = np.flatnonzero(weights == weight)
        drawn = group[rng.sample(range(len(group)), kept_tokens(selection.share, len(group)))]
        selected[drawn] = weight
    return selected
