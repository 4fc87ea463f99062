"""An audit as rows of text: the same blocks for the terminal, for Markdown and for the report. Loads no torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from leadspan.audit.findings import AuditResult, Contamination, Distribution, FirstAnswers, PolicyLoss
from leadspan.results import Interval

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Block:
    """One part of the page.

    Attributes:
        title: Its heading.
        header: Names of the columns; empty where the first column names the row.
        rows: Cells as text.
        note: A sentence on how to read it; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def blocks(result: AuditResult) -> list[Block]:
    """The whole page, top to bottom; parts without figures are left out."""
    found = [
        Block("Traces", (), tuple(_records(result))),
        Block(
            "Tokens per section",
            ("section", "mean", "p10", "p50", "p90", "p99", "histogram, from smallest to largest"),
            tuple(_lengths(name, summary) for name, summary in result.tokens.items()),
        ),
        Block("First answer", (), tuple(_first_answers(result.first_answers)), _reading(result.first_answers)),
        Block("Lead cuts", *_cuts(result.first_answers)),
        Block("Does the chain of thought say what prompt and answer say?", (), tuple(_entailment(result))),
        Block(
            "Traces that lose, per policy",
            ("policy", "tokens kept", "question", "end of thinking", "answer", "stop", "every weighted position"),
            tuple(map(_policy, result.policies)),
            "* the policy of the recipe" if any(policy.is_own for policy in result.policies) else "",
        ),
        Block("Repetition, duplicates, contamination", (), tuple(_hygiene(result))),
    ]
    return [block for block in found if block.rows]


def sparkline(summary: Distribution) -> str:
    """The histogram as a line of blocks, the tallest bin full.

    >>> sparkline(Distribution(count=7, mean=1, p10=0, p50=1, p90=2, p99=2, edges=[0, 1, 2, 3], counts=[4, 2, 1]))
    '█▄▂'
    """
    tallest = max(summary.counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // tallest)] for count in summary.counts)


def _records(result: AuditResult) -> Iterator[tuple[str, ...]]:
    yield "records read", f"{result.num_read:,}"
    yield "traces used", _of(result.num_traces, result.num_read)
    for reason, count in sorted(result.refused.items(), key=lambda item: -item[1]):
        yield f"refused: {reason}", f"{_of(count, result.num_read)}, e.g. {result.refusal_examples[reason]}"
    if result.stops_training:
        yield "a run would stop", result.stops_training


def _lengths(name: str, summary: Distribution) -> tuple[str, ...]:
    figures = (summary.mean, summary.p10, summary.p50, summary.p90, summary.p99)
    span = f"{summary.edges[0]:,.0f} {sparkline(summary)} {summary.edges[-1]:,.0f}"
    return (name, *(f"{figure:,.0f}" for figure in figures), span)


def _first_answers(found: FirstAnswers) -> Iterator[tuple[str, ...]]:
    total = found.num_traces
    yield "outcome", ", ".join(f"{name} {_of(count, total)}" for name, count in found.outcomes.items())
    yield "right answer from", ", ".join(f"{source} {count:,}" for source, count in found.gold_sources.items())
    if found.num_undecided:
        yield "comparisons given up", f"{found.num_undecided:,} candidates broke the limits and count as different"
    if found.position_tokens is not None:
        yield "tokens of CoT before it", _quantiles(found.position_tokens, ",.0f")
    if found.share_of_cot is not None:
        yield "share f of the CoT", f"{_quantiles(found.share_of_cot, '.2f')}   0 {sparkline(found.share_of_cot)} 1"
    if found.lsp_star is not None and found.lsp_star_values is not None:
        yield "predicted break point LSP*", _interval(found.lsp_star)
        yield (
            "LSP* of the traces",
            f"{_quantiles(found.lsp_star_values, '.2f')}   0 {sparkline(found.lsp_star_values)} 1",
        )


def _reading(found: FirstAnswers) -> str:
    if found.lsp_star is None:
        return "no chain of thought states a right answer, so no break point can be predicted"
    return "LSP* = (|P| + f |CoT|) / T: a lead cut below it is predicted to remove derivations and to hurt"


def _cuts(found: FirstAnswers) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    if not found.cuts:
        return (), ()
    header = ("lead p", *(f"{cut.p:g}" for cut in found.cuts))
    shares = tuple(f"{100 * cut.without_derivation.value:.0f} %" for cut in found.cuts)
    return header, (("traces left without a derivation", *shares),)


def _entailment(result: AuditResult) -> Iterator[tuple[str, ...]]:
    found = result.entailment
    named = {
        "numbers of the prompt that it repeats": found.prompt_numbers,
        "traces that repeat every number": found.all_prompt_numbers,
        "content words of the prompt that it repeats": found.prompt_words,
        "traces whose final answer stands in it": found.answer_stands,
    }
    return ((name, f"{share:.1%}") for name, share in named.items() if share is not None)


def _policy(policy: PolicyLoss) -> tuple[str, ...]:
    counts = policy.counts
    lost = (counts.lost_question, counts.lost_think_end, counts.lost_answer, counts.lost_stop)
    shares = (f"{count / counts.num_kept:.0%}" if counts.num_kept else "" for count in lost)
    label = f"{policy.label} *" if policy.is_own else policy.label
    unweighted = counts.num_examples - counts.num_kept
    return (
        label,
        f"{counts.tokens_after / counts.tokens_before:.0%}",
        *shares,
        f"{unweighted / counts.num_examples:.0%}",
    )


def _hygiene(result: AuditResult) -> Iterator[tuple[str, ...]]:
    loops, copies = result.repetition, result.duplicates
    yield "thinking never closed", f"{_of(result.num_unclosed, result.num_read)} of the records, refused"
    yield "loops", _of(loops.num_loops, result.num_traces) + _examples(loops.examples)
    yield "sentences said before in their trace", f"{loops.repeated_sentences:.1%}"
    yield "questions", f"{copies.num_questions:,} distinct in {result.num_traces:,} traces"
    yield "exact duplicates", _of(copies.num_exact, result.num_traces)
    near = _of(copies.num_near, result.num_traces) + f" at Jaccard {copies.threshold:g} or more"
    yield "near duplicates", near + _examples([f"{one} like {other}" for one, other in copies.examples])
    for task in result.contamination:
        yield f"task {task.task}", _contamination(task)


def _contamination(task: Contamination) -> str:
    shared = _of(task.num_shared, task.num_questions)
    text = f"{shared} of its questions share {task.ngram_words} words in a row with a prompt"
    if task.num_shared:
        text += f" ({task.num_traces:,} traces, e.g. {task.examples[0].place}: {task.examples[0].start!r})"
    if task.num_too_short:
        text += f"; {task.num_too_short:,} too short to look for"
    return text


def _of(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"


def _examples(places: list[str]) -> str:
    return f", e.g. {', '.join(places[:2])}" if places else ""


def _quantiles(summary: Distribution, form: str) -> str:
    names = ("mean", "p10", "p50", "p90")
    return ", ".join(f"{name} {getattr(summary, name):{form}}" for name in names)


def _interval(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] at {interval.level:.0%}"
