"""The findings of an audit: plain data, written as JSON, and tables for terminal and reports. Loads no torch."""

from collections.abc import Iterator
from itertools import starmap
from pathlib import Path

from pydantic import Field

from leadspan.data.truncation.policy import CutCounts, cut_warnings
from leadspan.errors import RunError
from leadspan.settings import Amount, Count, Settings, load_json
from leadspan.statistics.intervals import Interval
from leadspan.tables import Block, percent

AUDIT_FILE = "audit.json"
MOST_EXAMPLES = 5
"""Locations that an audit names for each finding."""
# From an empty bin to a full one.
_BARS = " ▁▂▃▄▅▆▇█"


class Distribution(Settings):
    """Values of one figure over the traces: summary and histogram."""

    count: Count
    """Values."""
    mean: float
    """Their mean."""
    p10: float
    """10th percentile (linear interpolation, as all the others)."""
    p50: float
    """Median."""
    p90: float
    """90th percentile."""
    p99: float
    """99th percentile."""
    edges: list[float] = Field(min_length=2)
    """Edges of the bins, one more than bins; the last bin holds what lies on its upper edge too."""
    counts: list[Count] = Field(min_length=1)
    """Values in each bin."""


class CutShare(Settings):
    """Share of traces that a lead cut leaves without a derivation."""

    p: float
    """Lead-span proportion."""
    without_derivation: Interval
    """Share of traces whose first statement of the answer is cut, of those that have one; mean over questions."""


class FirstAnswers(Settings):
    """Where the chains of thought first state the right answer."""

    outcomes: dict[str, Count]
    """Traces by outcome: `found`, `not found`, `no gold`."""
    gold_sources: dict[str, Count]
    """Where the right answer was taken from: `record`, `own boxed answer`, `own answer`, `none`."""
    num_undecided: Count = 0
    """Candidate expressions that algebra could not compare within its limits; they count as different."""
    position_tokens: Distribution | None = None
    """Tokens of the chain of thought before the statement."""
    share_of_cot: Distribution | None = None
    """The same as a share f of the chain of thought."""
    lsp_star: Interval | None = None
    """Predicted break point of a lead cut: (|P| + f |CoT|) / T, mean over questions of that of their traces."""
    lsp_star_values: Distribution | None = None
    """The same for every trace."""
    cuts: list[CutShare] = []
    """Share of traces that each p leaves without a derivation."""

    @property
    def num_traces(self) -> int:
        """Traces that were searched."""
        return sum(self.outcomes.values())


class Entailment(Settings):
    """Proxies of the condition under which a chain of thought alone suffices: it says what prompt and answer say.

    Source: Chen et al., arXiv 2512.21002, the supervision ablation.
    """

    prompt_numbers: float | None
    """Share of the prompt's distinct numbers that the chain of thought repeats, mean over traces that have any."""
    all_prompt_numbers: float | None
    """Share of those traces whose chain of thought repeats every one."""
    prompt_words: float | None
    """Share of the prompt's distinct content words that the chain of thought repeats, mean over traces."""
    answer_stands: float | None
    """Share of traces whose own final answer occurs in the chain of thought, stated or not, of those that have one."""


class PolicyLoss(Settings):
    """What one policy does to the traces."""

    label: str
    """The policy."""
    is_own: bool = False
    """Whether it is the policy of the recipe."""
    counts: CutCounts
    """Tokens kept, and how many traces lose the question, the end of thinking, the answer, the stop, or all weight."""


class Repetition(Settings):
    """Loops: the same tokens again and again."""

    num_loops: Count
    """Traces with a loop in their chain of thought."""
    examples: list[str] = []
    """Locations of some of them."""
    repeated_sentences: float
    """Share of sentences of at least five words that repeat an earlier one of their trace, mean over traces."""


class Duplicates(Settings):
    """Traces that occur more than once."""

    num_questions: Count
    """Distinct questions."""
    num_exact: Count
    """Traces whose tokens equal those of an earlier one."""
    num_near: Count
    """Other traces that are near duplicates of an earlier one."""
    threshold: float
    """Jaccard similarity of near duplicates."""
    examples: list[tuple[str, str]] = []
    """Some pairs: the trace and the earlier one."""


class SharedQuestion(Settings):
    """A question of a task that shares n-grams with a prompt."""

    problem_id: str
    """Problem of the task."""
    start: str
    """How it begins."""
    place: str
    """The trace that shares most with it."""
    share: float
    """Share of the question's n-grams that occur in that prompt."""


class Contamination(Settings):
    """One evaluation task against the prompts of the traces."""

    task: str
    """Task name."""
    num_questions: Count
    """Questions of the task."""
    num_too_short: Count
    """Questions with fewer than five words, which are not searched for."""
    num_shared: Count
    """Questions that share an n-gram with a prompt."""
    num_traces: Count
    """Traces whose prompt shares an n-gram with a question of the task."""
    ngram_words: Count
    """Words of an n-gram; shorter questions are searched for as a whole."""
    examples: list[SharedQuestion] = []
    """Questions that share most."""


class AuditResult(Settings):
    """All that an audit found."""

    source: str
    """Source that was audited."""
    tokenizer: str
    """Tokenizer that counted the tokens."""
    num_read: Count
    """Records read."""
    num_traces: Count
    """Traces that could be used."""
    refused: dict[str, Count] = {}
    """Records that could not, by reason; lengths out of bounds included."""
    refusal_examples: dict[str, str] = {}
    """Location and detail of one record of each reason."""
    num_unclosed: Count = 0
    """Refused records whose chain of thought never closes."""
    stops_training: str | None = None
    """Why a run on these records would refuse to start, if it would."""
    tokens: dict[str, Distribution]
    """Tokens per section: `prompt`, `cot`, `answer`, and `all` of them."""
    steps: Distribution | None = None
    """Steps of each chain of thought."""
    num_without_steps: int = 0
    """Traces whose chain of thought is one step, so that no policy can cut it between steps."""
    gold_faults: dict[str, int] = {}
    """Traces without a reference answer although their source has a column for it, by the kind of its content."""
    first_answers: FirstAnswers
    """First-answer positions and the predicted break point."""
    entailment: Entailment
    """Whether the chain of thought says what prompt and answer say."""
    policies: list[PolicyLoss]
    """Losses per policy."""
    repetition: Repetition
    """Loops."""
    duplicates: Duplicates
    """Exact and near duplicates."""
    contamination: list[Contamination] = []
    """Overlap with evaluation tasks."""
    seconds: Amount = 0.0
    """Wall time of the audit."""


def load_audit(path: Path) -> AuditResult:
    """Read a result that `leadspan audit --json` has written.

    Raises:
        RunError: There is none, or it is another kind of file.
    """
    return load_json(AuditResult, path, "write it with `leadspan audit --json`", RunError)


def blocks(result: AuditResult) -> list[Block]:
    """The findings as tables, top to bottom, without those that have no figures."""
    lengths: list[tuple[str, ...]] = []
    for name, summary in result.tokens.items():
        figures = (summary.mean, summary.p10, summary.p50, summary.p90, summary.p99)
        span = f"{summary.edges[0]:,.0f} {sparkline(summary)} {summary.edges[-1]:,.0f}"
        lengths.append((name, *(f"{figure:,.0f}" for figure in figures), span))
    answers, entailment = result.first_answers, result.entailment
    reading = "LSP* = (|P| + f |CoT|) / T: a lead cut below it is predicted to remove derivations and to hurt"
    if answers.lsp_star is None:
        reading = "no chain of thought states a right answer, so no break point can be predicted"
    left_out = [f"{100 * cut.without_derivation.value:.0f} %" for cut in answers.cuts]
    said = {
        "numbers of the prompt that it repeats": entailment.prompt_numbers,
        "traces that repeat every number": entailment.all_prompt_numbers,
        "content words of the prompt that it repeats": entailment.prompt_words,
        "traces whose final answer it contains": entailment.answer_stands,
    }
    # A label leaves out some settings, so that another policy may have that of the recipe's own.
    counts = [(f"{policy.label} *" if policy.is_own else policy.label, policy.counts) for policy in result.policies]
    notes = ["* the policy of the recipe"] if any(policy.is_own for policy in result.policies) else []
    tables = [
        Block("Traces", (), tuple(_records(result))),
        Block(
            "Tokens per section",
            ("section", "mean", "p10", "p50", "p90", "p99", "histogram, from smallest to largest"),
            tuple(lengths),
        ),
        Block("First answer", (), tuple(_first_answers(answers)), reading),
        Block(
            "Lead cuts",
            ("lead p", *(f"{cut.p:g}" for cut in answers.cuts)),
            (("traces left without a derivation", *left_out),) if left_out else (),
        ),
        Block(
            "What the chain of thought repeats",
            (),
            tuple((name, percent(share, 1)) for name, share in said.items() if share is not None),
        ),
        Block(
            "Traces that lose, per policy",
            ("policy", "tokens kept", "question", "end of thinking", "answer", "stop", "every weighted position"),
            tuple(starmap(_policy, counts)),
            "\n".join([*notes, *cut_warnings(dict(counts))]),
        ),
        Block("Repetition, duplicates, contamination", (), tuple(_hygiene(result))),
    ]
    return [table for table in tables if table.rows]


def sparkline(summary: Distribution) -> str:
    """The histogram as a line of blocks, the tallest bin full.

    >>> sparkline(Distribution(count=7, mean=1, p10=0, p50=1, p90=2, p99=2, edges=[0, 1, 2, 3], counts=[4, 2, 1]))
    '█▄▂'
    """
    # Rounded up, so that a bin with a single trace is seen.
    tallest = max(summary.counts) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // tallest)] for count in summary.counts)


def _records(result: AuditResult) -> Iterator[tuple[str, ...]]:
    yield "records read", f"{result.num_read:,}"
    yield "traces used", _of(result.num_traces, result.num_read)
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        examples = [result.refusal_examples[reason]] if reason in result.refusal_examples else []
        yield f"refused: {reason}", _of(count, result.num_read) + _examples(examples)
    if faults := [f"{fault} {_of(count, result.num_traces)}" for fault, count in result.gold_faults.items()]:
        yield "no reference answer in its column", ", ".join(faults)
    if result.steps is not None:
        alone = _of(result.num_without_steps, result.num_traces)
        yield "steps of a chain of thought", f"{_quantiles(result.steps, ',.0f')}; a single step in {alone}"
    if result.stops_training:
        yield "a run would stop", result.stops_training


def _first_answers(answers: FirstAnswers) -> Iterator[tuple[str, ...]]:
    total = answers.num_traces
    yield "outcome", ", ".join(f"{name} {_of(count, total)}" for name, count in answers.outcomes.items())
    yield "right answer from", ", ".join(f"{source} {count:,}" for source, count in answers.gold_sources.items())
    if answers.num_undecided:
        yield "comparisons given up", f"{answers.num_undecided:,} candidates exceeded the limits and count as different"
    if answers.position_tokens is not None:
        yield "tokens of CoT before it", _quantiles(answers.position_tokens, ",.0f")
    if answers.share_of_cot is not None:
        yield "share f of the CoT", f"{_quantiles(answers.share_of_cot, '.2f')}   0 {sparkline(answers.share_of_cot)} 1"
    if (point := answers.lsp_star) is not None and (values := answers.lsp_star_values) is not None:
        interval = f"{point.value:.2f} [{point.low:.2f}, {point.high:.2f}] at {percent(point.level)}"
        yield "predicted break point LSP*", interval
        yield "LSP* of the traces", f"{_quantiles(values, '.2f')}   0 {sparkline(values)} 1"


def _policy(label: str, counts: CutCounts) -> tuple[str, ...]:
    # Shares of the examples that keep any weight; the others are in the last column.
    lost = (counts.lost_question, counts.lost_think_end, counts.lost_answer, counts.lost_stop)
    shares = (percent(count / counts.num_kept) if counts.num_kept else "" for count in lost)
    unweighted = counts.num_examples - counts.num_kept
    return (
        label,
        percent(counts.tokens_after / counts.tokens_before) if counts.tokens_before else "",
        *shares,
        percent(unweighted / counts.num_examples) if counts.num_examples else "",
    )


def _hygiene(result: AuditResult) -> Iterator[tuple[str, ...]]:
    loops, copies = result.repetition, result.duplicates
    yield "thinking never closed", f"{_of(result.num_unclosed, result.num_read)} of the records, refused"
    yield "loops", _of(loops.num_loops, result.num_traces) + _examples(loops.examples)
    yield "sentences repeated within their trace", percent(loops.repeated_sentences, 1)
    yield "questions", f"{copies.num_questions:,} distinct in {result.num_traces:,} traces"
    yield "exact duplicates", _of(copies.num_exact, result.num_traces)
    near = f"{_of(copies.num_near, result.num_traces)} at Jaccard {copies.threshold:g} or more"
    yield "near duplicates", near + _examples([f"{trace} like {copy}" for trace, copy in copies.examples])
    for task in result.contamination:
        shared = _of(task.num_shared, task.num_questions)
        text = f"{shared} of its questions share {task.ngram_words} words in a row with a prompt"
        if task.num_shared:
            example = f", e.g. {task.examples[0].place}: {task.examples[0].start!r}" if task.examples else ""
            text += f" ({task.num_traces:,} traces{example})"
        text += f"; {task.num_too_short:,} too short to search for" if task.num_too_short else ""
        yield f"task {task.task}", text


def _of(count: int, total: int) -> str:
    return f"{count:,} ({percent(count / total, 1)})" if total else f"{count:,}"


def _examples(locations: list[str]) -> str:
    return f", e.g. {', '.join(locations[:2])}" if locations else ""


def _quantiles(summary: Distribution, form: str) -> str:
    names = ("mean", "p10", "p50", "p90")
    return ", ".join(f"{name} {getattr(summary, name):{form}}" for name in names)
