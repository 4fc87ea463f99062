"""Supervision: what each kept token weighs in the loss.

One non-negative weight per section. The six conditions of Chen et al. (arXiv 2512.21002, the supervision ablation: A,
P+A, CoT, CoT+A, P+CoT, P+CoT+A) are weights of 0 and 1. A cut decides which tokens are there; this decides which of
them are learnt; the two compose freely.
"""

import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from leadspan.data.selection import TokenSelection
from leadspan.data.truncation import Cut, Sections, kept_tokens
from leadspan.faults import Rule
from leadspan.settings import Settings

PROMPT, COT, ANSWER, APPENDED = 0, 1, 2, 3
"""Section ids of tokens; `APPENDED` marks an end-of-turn token that the trace itself does not have there."""
SECTION_NAMES = ("prompt", "cot", "answer", "appended")


class Supervision(Settings):
    """Weight of the loss per section."""

    prompt: float = Field(default=0.0, ge=0)
    """Weight of prompt tokens."""
    cot: float = Field(default=1.0, ge=0)
    """Weight of chain-of-thought tokens, think tags included."""
    answer: float = Field(default=1.0, ge=0)
    """Weight of answer tokens, end-of-turn included."""
    token_selection: TokenSelection | None = None
    """Which of the weighted positions get the loss; all of them when absent. Validation always counts all."""

    def conflicts(self) -> Iterator[Rule]:
        """Something is learnt."""
        if not (self.prompt or self.cot or self.answer):
            text = "all weights are 0, so nothing would be learnt; give at least one section a weight"
            yield ("prompt", "cot", "answer"), text

    def of(self, section: int) -> float:
        """Weight of a section id; an appended end-of-turn token weighs 1."""
        return (self.prompt, self.cot, self.answer, 1.0)[section]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of kept tokens of one section and one weight: `[start, end)` of the whole sequence."""

    start: int
    end: int
    section: int
    weight: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The kept tokens of one example in order, nothing after the last weighted one.

    Attributes:
        segments: Kept runs; empty when no position has a weight.
        append_stop: Whether an end-of-turn token follows.
        share: Share of the positions of one weight that the token selection leaves with a loss.
    """

    segments: tuple[Segment, ...]
    append_stop: bool
    share: float = 1.0

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
    """Layouts in some 80 bytes each, where objects would take 800: a layout is made when it is asked for."""

    def __init__(self) -> None:
        self._first = array("q", [0])  # the first segment of each layout, and one past the last
        self._starts, self._ends, self._sections, self._weights = array("q"), array("q"), array("b"), array("d")
        self._append_stop, self._shares = array("b"), array("d")
        self.lengths = array("q")

    def append(self, layout: Layout) -> None:
        """Add one at the end."""
        for segment in layout.segments:
            self._starts.append(segment.start)
            self._ends.append(segment.end)
            self._sections.append(segment.section)
            self._weights.append(segment.weight)
        self._first.append(len(self._starts))
        self._append_stop.append(layout.append_stop)
        self._shares.append(layout.share)
        self.lengths.append(layout.num_tokens)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Layout:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        index = range(len(self))[index]  # from the end where negative, and an error beyond it, as of a list
        segments = tuple(
            Segment(self._starts[i], self._ends[i], self._sections[i], self._weights[i])
            for i in range(self._first[index], self._first[index + 1])
        )
        return Layout(segments, bool(self._append_stop[index]), self._shares[index])


def lay_out(sections: Sections, cut: Cut, supervision: Supervision) -> Layout:
    """Weigh what a cut keeps, and drop everything after the last weighted position.

    In a causal model a token after the last weighted one cannot change the loss, so it is not computed. The very first
    token has no loss whatever its weight, since nothing predicts it. An appended end-of-turn token never follows a cut
    inside the prompt: that would teach to end before the question is asked.
    """
    borders = (
        (PROMPT, 0, sections.prompt_end),
        (COT, sections.prompt_end, sections.cot_end),
        (ANSWER, sections.cot_end, sections.num_tokens),
    )
    no_loss = cut.unweighted or (0, 0)
    segments: list[Segment] = []
    for span, (section, section_start, section_end) in itertools.product(cut.spans, borders):
        start, end = max(span[0], section_start), min(span[1], section_end)
        if start < end:
            # Split around the range without a loss.
            marks = sorted({start, end, *(mark for mark in no_loss if start < mark < end)})
            for first, last in itertools.pairwise(marks):
                is_masked = no_loss[0] <= first and last <= no_loss[1]
                segments.append(Segment(first, last, section, 0.0 if is_masked else supervision.of(section)))
    append_stop = cut.append_stop and bool(segments) and segments[-1].section != PROMPT
    while segments and segments[-1].weight == 0 and not append_stop:
        segments.pop()
    selection = supervision.token_selection
    layout = Layout(tuple(segments), append_stop, 1.0 if selection is None else selection.share)
    return layout if layout.num_weighted > 0 else Layout((), False)
