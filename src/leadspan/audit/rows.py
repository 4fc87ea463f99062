"""An audit as rows of text: the same blocks for the terminal, for Markdown and for the report. Loads no torch."""

from collections.abc import Iterator
from itertools import starmap

from leadspan.audit.findings import AuditResult, Distribution, FirstAnswers
from leadspan.data.truncation.policy import CutCounts, cut_warnings
from leadspan.tables import Block, percent

# From an empty bin to a full one.
_BARS = " ▁▂▃▄▅▆▇█"


def blocks(result: AuditResult) -> list[Block]:
    """All blocks, top to bottom, without those that have no figures."""
    has_own = any(policy.is_own for policy in result.policies)
    # A label leaves out some settings, so that another policy may have that of the recipe's own.
    counts = [(f"{policy.label} *" if policy.is_own else policy.label, policy.counts) for policy in result.policies]
    answers = result.first_answers
    reading = "LSP* = (|P| + f |CoT|) / T: a lead cut below it is predicted to remove derivations and to hurt"
    if answers.lsp_star is None:
        reading = "no chain of thought states a right answer, so no break point can be predicted"
    left_out = [f"{100 * cut.without_derivation.value:.0f} %" for cut in answers.cuts]
    entailment = {
        "numbers of the prompt that it repeats": result.entailment.prompt_numbers,
        "traces that repeat every number": result.entailment.all_prompt_numbers,
        "content words of the prompt that it repeats": result.entailment.prompt_words,
        "traces whose final answer it contains": result.entailment.answer_stands,
    }
    # All are built, and those without figures are dropped at the end.
    blocks_shown = [
        Block("Traces", (), tuple(_records(result))),
        Block(
            "Tokens per section",
            ("section", "mean", "p10", "p50", "p90", "p99", "histogram, from smallest to largest"),
            tuple(_lengths(name, summary) for name, summary in result.tokens.items()),
        ),
        Block("First answer", (), tuple(_first_answers(answers)), reading),
        Block(
            "Lead cuts",
            ("lead p", *(f"{cut.p:g}" for cut in answers.cuts)),
            (("traces left without a derivation", *left_out),) if left_out else (),
        ),
        Block(
            "Does the chain of thought say what prompt and answer say?",
            (),
            tuple((name, percent(share, 1)) for name, share in entailment.items() if share is not None),
        ),
        Block(
            "Traces that lose, per policy",
            ("policy", "tokens kept", "question", "end of thinking", "answer", "stop", "every weighted position"),
            tuple(starmap(_policy, counts)),
            "\n".join([*(["* the policy of the recipe"] if has_own else []), *cut_warnings(dict(counts))]),
        ),
        Block("Repetition, duplicates, contamination", (), tuple(_hygiene(result))),
    ]
    return [block for block in blocks_shown if block.rows]


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
    if result.gold_faults:
        faults = ", ".join(f"{fault} {_of(count, result.num_traces)}" for fault, count in result.gold_faults.items())
        yield "no reference answer in its column", faults
    if result.steps is not None:
        alone = _of(result.num_without_steps, result.num_traces)
        yield "steps of a chain of thought", f"{_quantiles(result.steps, ',.0f')}; only one in {alone}"
    if result.stops_training:
        yield "a run would stop", result.stops_training


def _lengths(name: str, summary: Distribution) -> tuple[str, ...]:
    figures = (summary.mean, summary.p10, summary.p50, summary.p90, summary.p99)
    span = f"{summary.edges[0]:,.0f} {sparkline(summary)} {summary.edges[-1]:,.0f}"
    return (name, *(f"{figure:,.0f}" for figure in figures), span)


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
    if answers.lsp_star is not None and answers.lsp_star_values is not None:
        point = answers.lsp_star
        interval = f"{point.value:.2f} [{point.low:.2f}, {point.high:.2f}] at {percent(point.level)}"
        yield "predicted break point LSP*", interval
        yield (
            "LSP* of the traces",
            f"{_quantiles(answers.lsp_star_values, '.2f')}   0 {sparkline(answers.lsp_star_values)} 1",
        )


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
    near = _of(copies.num_near, result.num_traces) + f" at Jaccard {copies.threshold:g} or more"
    yield "near duplicates", near + _examples([f"{trace} like {copy}" for trace, copy in copies.examples])
    for task in result.contamination:
        shared = _of(task.num_shared, task.num_questions)
        text = f"{shared} of its questions share {task.ngram_words} words in a row with a prompt"
        if task.num_shared:
            example = f", e.g. {task.examples[0].place}: {task.examples[0].start!r}" if task.examples else ""
            text += f" ({task.num_traces:,} traces{example})"
        if task.num_too_short:
            text += f"; {task.num_too_short:,} too short to search for"
        yield f"task {task.task}", text


def _of(count: int, total: int) -> str:
    return f"{count:,} ({percent(count / total, 1)})" if total else f"{count:,}"


def _examples(locations: list[str]) -> str:
    return f", e.g. {', '.join(locations[:2])}" if locations else ""


def _quantiles(summary: Distribution, form: str) -> str:
    names = ("mean", "p10", "p50", "p90")
    return ", ".join(f"{name} {getattr(summary, name):{form}}" for name in names)
