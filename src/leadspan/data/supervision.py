"""Supervision: what each kept token weighs in the loss, and which of the weighted ones get one.

One non-negative weight per section. The six conditions of Chen et al. (arXiv 2512.21002, the supervision ablation: A,
P+A, CoT, CoT+A, P+CoT, P+CoT+A) are weights of 0 and 1. A cut decides which tokens are there; this decides which of
them are learnt; the two compose freely.

Where tokens are selected, positions of one example with one weight are a group, and of every group the same share is
selected. So the number selected and the sum of their weights are known before any model has run, whatever the packing,
and the loss is divided by the weight that was really learnt. An appended end-of-turn token is always learnt.
"""

import itertools
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from leadspan.costs.flops import ExampleSize
from leadspan.data.truncation import Cut, Sections, kept_tokens
from leadspan.faults import Rule
from leadspan.settings import Settings

PROMPT, COT, ANSWER, APPENDED = 0, 1, 2, 3
"""Section ids of tokens; `APPENDED` marks an end-of-turn token that the trace itself does not have there."""
SECTION_NAMES = ("prompt", "cot", "answer", "appended")


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


_LARGEST = 1e6
"""Largest weight, and inverse of the smallest one: far beyond these, float32 has none and the loss is not a number."""


class Supervision(Settings):
    """Weight of the loss per section."""

    prompt: float = Field(default=0.0, ge=0, le=_LARGEST)
    """Weight of prompt tokens."""
    cot: float = Field(default=1.0, ge=0, le=_LARGEST)
    """Weight of chain-of-thought tokens, think tags included."""
    answer: float = Field(default=1.0, ge=0, le=_LARGEST)
    """Weight of answer tokens, end-of-turn included."""
    token_selection: TokenSelection | None = None
    """Which of the weighted positions get the loss; all of them when absent. Validation always counts all."""

    def conflicts(self) -> Iterator[Rule]:
        """Something is learnt, with weights that do not vanish."""
        if not (self.prompt or self.cot or self.answer):
            text = "all weights are 0, so nothing would be learnt; give at least one section a weight"
            yield ("prompt", "cot", "answer"), text
        for name in ("prompt", "cot", "answer"):
            if 0 < getattr(self, name) < 1 / _LARGEST:
                yield (name,), f"{name} = {getattr(self, name):g}: give 0, or {1 / _LARGEST:g} and more"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of kept tokens of one section and one weight: `[start, end)` of the whole sequence."""

    start: int
    end: int
    section: int
    weight: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The kept tokens of one example in order, nothing after the last weighted one."""

    segments: tuple[Segment, ...]  # kept runs; empty when no position has a weight
    append_stop: bool  # whether an end-of-turn token follows
    share: float = 1.0  # of the positions of one weight, what the token selection leaves with a loss

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the forward pass."""
        return sum(s.end - s.start for s in self.segments) + self.append_stop

    @property
    def num_scored(self) -> int:
        """Weighted tokens but the very first, which nothing predicts, before any token selection."""
        return sum(self._by_weight().values()) + self.append_stop

    @property
    def num_weighted(self) -> int:
        """Positions with a loss: the weighted ones that the token selection leaves."""
        return sum(kept_tokens(self.share, count) for count in self._by_weight().values()) + self.append_stop

    def _by_weight(self) -> Counter[float]:
        """Weighted positions of the trace's own tokens by their weight."""
        counts: Counter[float] = Counter()
        for segment in self.segments:
            if segment.weight > 0:
                counts[segment.weight] += segment.end - segment.start
        if self.segments and self.segments[0].weight > 0:
            # The first token of a row has no prediction, so its weight never counts.
            counts[self.segments[0].weight] -= 1
        return +counts  # without counts of 0


class Layouts(Sequence[Layout]):
    """Layouts in some 35 bytes each, where objects would take 800: a layout is made when it is asked for."""

    def __init__(self) -> None:
        self._first = array("I", [0])  # the first segment of each layout, and one past the last
        self._starts, self._ends, self._kinds = array("i"), array("i"), array("B")
        self._number_of_kind: dict[tuple[int, float], int] = {}  # section and weight of a segment: there are few
        self._tails, self._number_of_tail = array("B"), dict[tuple[bool, float], int]()  # end of turn, share
        self.lengths = array("i")

    def append(self, layout: Layout) -> None:
        """Add one at the end."""
        for segment in layout.segments:
            self._starts.append(segment.start)
            self._ends.append(segment.end)
            kind = segment.section, segment.weight
            self._kinds.append(self._number_of_kind.setdefault(kind, len(self._number_of_kind)))
        self._first.append(len(self._starts))
        tail = layout.append_stop, layout.share
        self._tails.append(self._number_of_tail.setdefault(tail, len(self._number_of_tail)))
        self.lengths.append(layout.num_tokens)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Layout:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        index = range(len(self))[index]  # from the end where negative, and an error beyond it, as of a list
        kinds = list(self._number_of_kind)
        segments = tuple(
            Segment(self._starts[i], self._ends[i], *kinds[self._kinds[i]])
            for i in range(self._first[index], self._first[index + 1])
        )
        return Layout(segments, *list(self._number_of_tail)[self._tails[index]])


def lay_out(sections: Sections, cut: Cut, supervision: Supervision) -> Layout:
    """Weigh what a cut keeps, and drop everything after the last weighted position.

    In a causal model a token after the last weighted one cannot change the loss, so it is not computed. The very first
    token has no loss whatever its weight, since nothing predicts it. An appended end-of-turn token never follows a cut
    inside the prompt: that would teach to end before the question is asked.
    """
    borders = (
        (PROMPT, 0, sections.prompt_end, supervision.prompt),
        (COT, sections.prompt_end, sections.cot_end, supervision.cot),
        (ANSWER, sections.cot_end, sections.num_tokens, supervision.answer),
    )
    no_loss = cut.unweighted or (0, 0)
    segments: list[Segment] = []
    for span, (section, section_start, section_end, weight) in itertools.product(cut.spans, borders):
        start, end = max(span[0], section_start), min(span[1], section_end)
        if start < end:
            # Split around the range without a loss.
            marks = sorted({start, end, *(mark for mark in no_loss if start < mark < end)})
            for first, last in itertools.pairwise(marks):
                is_masked = no_loss[0] <= first and last <= no_loss[1]
                segments.append(Segment(first, last, section, 0.0 if is_masked else weight))
    append_stop = cut.append_stop and bool(segments) and segments[-1].section != PROMPT
    while segments and segments[-1].weight == 0 and not append_stop:
        segments.pop()
    selection = supervision.token_selection
    layout = Layout(tuple(segments), append_stop, 1.0 if selection is None else selection.share)
    return layout if layout.num_weighted > 0 else Layout((), False)


def layout_sizes(layouts: Iterable[Layout], selection: ScoredSelection | None) -> list[ExampleSize]:
    """Sizes of examples by their layouts; positions are scored where a selection goes by scores."""
    is_scored = selection is not None
    return [ExampleSize(each.num_tokens, each.num_weighted, each.num_scored * is_scored) for each in layouts]


def draw_tokens(weights: np.ndarray, selection: RandomTokens, example_id: str, seed: int) -> np.ndarray:
    """Weights of one example, [n], with those that were not drawn set to 0; drawn from `(seed, example_id)` only."""
    # A stream of its own: the policy draws from (seed, example_id), and the two draws must not be tied.
    rng = random.Random(f"{seed}:{example_id}:tokens")
    selected = np.zeros_like(weights)
    for weight in np.unique(weights[weights > 0]):
        group = np.flatnonzero(weights == weight)
        drawn = group[rng.sample(range(len(group)), kept_tokens(selection.share, len(group)))]
        selected[drawn] = weight
    return selected
