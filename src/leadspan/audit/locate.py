"""Rendered traces with the tokens at which each states its right answer, or may do so; optionally in processes."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leadspan.answers.first_answer import Candidates, GoldSource, find_candidates, gold_of, resolve
from leadspan.answers.grading import MathGrader
from leadspan.data.sections import Rendered, Renderer
from leadspan.data.truncation import Sections
from leadspan.traces.records import Refusal, Trace

BATCH = 32
"""Traces rendered and tokenised at a time."""
ITEM_SECONDS = 2.0
"""Limit for comparing one candidate answer by algebra."""
SETTLED_TOGETHER = 8
"""Traces settled at a time where there is a deadline: the most whose comparisons it can waste."""


@dataclass(frozen=True, slots=True)
class _Usable:
    """One usable trace.

    Attributes:
        place: Its file and line.
        example_id: Hash of its token ids.
        question_id: Hash of its question.
        sections: Section borders; of an `Answered`, with the last token of the first statement.
    """

    place: str
    example_id: str
    question_id: str
    sections: Sections


@dataclass(frozen=True, slots=True)
class Located(_Usable):
    """A usable trace that was searched.

    Attributes:
        candidates: Where the chain of thought states, or may state, the answer.
        tokens: First and last token of each candidate, in the whole sequence.
    """

    candidates: Candidates
    tokens: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Answered(_Usable):
    """A usable trace, and where it states its right answer.

    Attributes:
        source: Where the right answer was taken from.
        position: First token of the first statement, in the whole sequence; None where there is none.
    """

    source: GoldSource
    position: int | None


@dataclass(frozen=True)
class Locator:
    """Finds candidates in rendered traces."""

    renderer: Renderer

    def locate(self, batch: Sequence[Trace | Refusal]) -> tuple[list[tuple[Trace, Rendered, Located]], list[Refusal]]:
        """Render, tokenise and search a batch; refusals are returned separately."""
        traces, texts, refused = self.renderer.render_all(batch)
        think_open = self.renderer.rendering.think_open
        trace_results: list[Candidates] = []
        marks: list[list[int]] = []
        for trace, text in zip(traces, texts, strict=True):
            start = text.text.index(think_open, text.prompt_end) + len(think_open)
            cot = text.text[start : text.think_end].lstrip()
            trace_results.append(find_candidates(cot.rstrip(), question_of(trace), gold_of(trace)))
            # First and last character of each candidate, whose tokens are looked for.
            start = text.think_end - len(cot)
            marks.append([start + at for c in trace_results[-1].candidates for at in (c.start, c.end - 1)])
        # One call for the batch: the tokenizer spreads it over the cores.
        tokens = self.renderer.tokenise_marked(texts, traces, marks)
        located: list[tuple[Trace, Rendered, Located]] = []
        for trace, (rendered, positions), candidates in zip(traces, tokens, trace_results, strict=True):
            ids = (trace.place, rendered.example_id, rendered.question_id)
            ends = tuple(zip(positions[::2], positions[1::2], strict=True))
            located.append((trace, rendered, Located(*ids, rendered.sections, candidates, ends)))
        return located, refused

    def examine(self, batch: Sequence[Trace | Refusal]) -> list[Located | Refusal]:
        """Results of `locate` as one list, without the texts, to send between processes."""
        located, refused = self.locate(batch)
        return [*refused, *(trace for _, _, trace in located)]


def settle(
    located: Sequence[Located], num_workers: int, item_seconds: float = ITEM_SECONDS, deadline: float = math.inf
) -> tuple[list[Answered], int]:
    """The first candidate of each trace that equals its gold; where spelling does not decide, Math-Verify does.

    Args:
        located: Every trace with its candidates.
        num_workers: Math-Verify workers; none is started where nothing is open.
        item_seconds: Limit of one comparison.
        deadline: Moment of `time.monotonic` at which to stop.

    Returns:
        The traces that were settled before the deadline, in order, all where there is none; and how many of their
        comparisons broke the limit.
    """
    # With no deadline all are settled in one call, which keeps every worker busy.
    step = len(located) or 1 if math.isinf(deadline) else SETTLED_TOGETHER
    answered: list[Answered] = []
    num_undecided = 0
    with MathGrader(num_workers, item_seconds, deadline=deadline) as grader:
        for start in range(0, len(located), step):
            together = located[start : start + step]
            first, num_timeouts = resolve([answer.candidates for answer in together], grader)
            if time.monotonic() >= deadline:
                break  # some comparisons of these traces may be missing, and a trace counts fully or not at all
            for trace, candidate in zip(together, first, strict=True):
                position, last = (None, None) if candidate is None else trace.tokens[candidate]
                sections, source = replace(trace.sections, first_answer=last), trace.candidates.gold.source
                ids = (trace.place, trace.example_id, trace.question_id)
                answered.append(Answered(*ids, sections, source, position))
            num_undecided += num_timeouts
    return answered, num_undecided


def question_of(trace: Trace) -> str:
    """The last thing the user said."""
    return next(message["content"] for message in reversed(trace.messages) if message["role"] == "user")
