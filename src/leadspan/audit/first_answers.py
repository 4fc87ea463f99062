"""First answers of rendered traces, and the break point they predict for a lead cut.

A lead cut of p keeps the first `kept = max(1, floor(p T))` tokens. It keeps the derivation of a trace when it keeps the
token at which the chain of thought first states the answer. With f the share of the chain of thought in front of that
token, it is at `|P| + f |CoT|`, and the break point is LSP* = (|P| + f |CoT|) / T: below it this trace teaches no
derivation. For a set of traces LSP* is the mean, and the share of traces without a derivation at p is the distribution
function of the single values.

Source: the project's own prediction, from the observation of Chen et al. (arXiv 2512.21002) that the first correct
derivation falls near the middle of a trace.
"""

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unicodedata import normalize

import numpy as np

from leadspan.answers.first_answer import Candidates, GoldSource, find_candidates, gold_of, resolve
from leadspan.answers.grading import MathGrader
from leadspan.audit.findings import CutShare, Distribution, FirstAnswers
from leadspan.data.sections import Rendered, Renderer
from leadspan.data.truncation import Lead, Policy, Sections, cut_example
from leadspan.statistics.intervals import Interval, bootstrap_mean
from leadspan.statistics.resampling import Bootstrap
from leadspan.traces.records import Refusal, Trace

BATCH = 32
"""Traces rendered and tokenised at a time."""
ITEM_SECONDS = 2.0
"""Limit for comparing one candidate answer by algebra."""
SETTLED_TOGETHER = 8
"""Traces settled at a time where there is a deadline: the most whose comparisons it can waste."""
NUM_BINS = 20
# Rounded, since 3 * 0.1 is not 0.3 in binary.
PROPORTIONS = tuple(round(0.1 * step, 1) for step in range(1, 11))
# Draws of a bootstrap (questions times resamples) at most, so that an audit of a million questions takes seconds; and
# the fewest resamples that still give an interval.
_MOST_DRAWS = 20_000_000
_FEWEST_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """A usable trace, and where it states its right answer."""

    place: str  # file and line
    example_id: str  # hash of its token ids
    question_id: str  # hash of its question
    sections: Sections  # once settled with the last token of the first statement of the record's answer
    source: GoldSource  # of the right answer
    position: int | None = None  # first token of the first statement, in the whole sequence; None where there is none


@dataclass(frozen=True, slots=True)
class Located:
    """A usable trace that was searched, its first statement not settled yet."""

    trace: Answered
    candidates: Candidates  # where the chain of thought states, or may state, the answer
    tokens: tuple[tuple[int, int], ...]  # first and last token of each candidate, in the whole sequence


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
            gold, question = gold_of(trace), normalize("NFC", question_of(trace))
            # Letters of the record may be composed of several characters, those of the rendered text of one.
            gold = replace(gold, text=normalize("NFC", gold.text))
            trace_results.append(find_candidates(cot.rstrip(), question, gold))
            # First and last character of each candidate, whose tokens are looked for.
            start = text.think_end - len(cot)
            marks.append([start + at for c in trace_results[-1].candidates for at in (c.start, c.end - 1)])
        # One call for the batch: the tokenizer spreads it over the cores.
        tokens = self.renderer.tokenise(texts, traces, marks)
        located: list[tuple[Trace, Rendered, Located]] = []
        for trace, rendered, candidates in zip(traces, tokens, trace_results, strict=True):
            ids = (trace.place, rendered.example_id, rendered.question_id)
            usable = Answered(*ids, rendered.sections, candidates.gold.source)
            ends = tuple(zip(rendered.marked[::2], rendered.marked[1::2], strict=True))
            located.append((trace, rendered, Located(usable, candidates, ends)))
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
        num_workers: Processes of Math-Verify; none is started where nothing is open.
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
            for searched, candidate in zip(together, first, strict=True):
                position, last = (None, None) if candidate is None else searched.tokens[candidate]
                # An answer that only the trace itself gives is not taken for right where a policy cuts at it.
                last = last if searched.trace.source == "record" else None
                sections = replace(searched.trace.sections, first_answer=last)
                answered.append(replace(searched.trace, sections=sections, position=position))
            num_undecided += num_timeouts
    return answered, num_undecided


def question_of(trace: Trace) -> str:
    """The last thing the user said."""
    return next(message["content"] for message in reversed(trace.messages) if message["role"] == "user")


def distribution(values: Sequence[float], low: float | None = None, high: float | None = None) -> Distribution | None:
    """Mean, percentiles and a histogram of 20 equal bins from `low` to `high`; None for no values.

    Without them the smallest and the largest value are the edges.
    """
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    first = float(array.min()) if low is None else low
    last = float(array.max()) if high is None else high
    # 1e-9: values that are all equal still need a bin of some width.
    counts, edges = np.histogram(array, bins=NUM_BINS, range=(first, max(last, first + 1e-9)))
    p10, p50, p90, p99 = (float(value) for value in np.percentile(array, [10, 50, 90, 99]))
    return Distribution(
        count=len(values), mean=float(array.mean()), p10=p10, p50=p50, p90=p90, p99=p99,
        edges=[float(edge) for edge in edges], counts=[int(count) for count in counts],
    )  # fmt: skip


def mean_by_question(values: Sequence[float], questions: Sequence[str], seed: int) -> Interval:
    """Mean over questions of the mean over their traces, with a bootstrap interval over questions.

    Traces of one question are not independent, so questions are resampled (`statistics.intervals.bootstrap_mean`).
    There is at least one value, in [0, 1], with the question of its trace.
    """
    grouped: defaultdict[str, list[float]] = defaultdict(list)
    for value, question in zip(values, questions, strict=True):
        grouped[question].append(value)
    num_resamples = max(_FEWEST_RESAMPLES, min(4000, _MOST_DRAWS // len(grouped)))
    return bootstrap_mean(list(grouped.values()), Bootstrap(num_resamples=num_resamples, seed=seed))


def summarise(traces: Sequence[Answered], num_undecided: int, seed: int) -> FirstAnswers:
    """Outcomes, positions, LSP*, and the share of traces that each p leaves without a derivation.

    `num_undecided` comparisons broke the limits; `seed` is that of the bootstrap.
    """
    stated = [(trace.position, trace) for trace in traces if trace.position is not None]
    num_without_gold = sum(trace.source == "none" for trace in traces)
    counts = FirstAnswers(
        outcomes={
            "found": len(stated),
            "not found": len(traces) - len(stated) - num_without_gold,
            "no gold": num_without_gold,
        },
        gold_sources=dict(Counter(trace.source for trace in traces)),
        num_undecided=num_undecided,
    )
    if not stated:
        return counts
    cuts = [(p, without_derivation(Lead(p=p), traces, seed)) for p in PROPORTIONS]
    # Shares have bins from 0 to 1, so that the histograms of two audits compare.
    before = [position - trace.sections.prompt_end for position, trace in stated]
    cot_lengths = [trace.sections.cot_end - trace.sections.prompt_end for _, trace in stated]  # tags included
    points = [position / trace.sections.num_tokens for position, trace in stated]
    shares = {
        "position_tokens": distribution(before),
        "share_of_cot": distribution([n / length for n, length in zip(before, cot_lengths, strict=True)], 0, 1),
        "lsp_star": mean_by_question(points, [trace.question_id for _, trace in stated], seed),
        "lsp_star_values": distribution(points, 0, 1),
        "cuts": [CutShare(p=p, without_derivation=share) for p, share in cuts if share is not None],
    }
    return counts.model_copy(update=shares)


def without_derivation(policy: Policy, traces: Sequence[Answered], seed: int) -> Interval | None:
    """Share of traces whose first statement of the answer a policy cuts, of those that have one; None where none has.

    Under a policy that changes over training, the mean over its stages.
    """
    # 1 where a stage cuts the statement, else 0.
    lost: list[float] = []
    questions: list[str] = []
    for stage, trace in itertools.product(policy.stages, traces):
        if trace.position is not None:
            spans = cut_example(stage, trace.sections, trace.example_id, seed).spans
            lost.append(float(not any(start <= trace.position < end for start, end in spans)))
            questions.append(trace.question_id)
    return mean_by_question(lost, questions, seed) if lost else None
