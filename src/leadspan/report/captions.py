"""The sentences about the rows of a task: their cuts, its size, what was kept or refused, how intervals were made."""

from collections.abc import Mapping, Sequence

from leadspan.data.truncation import Budget, Full, Lead, LeadAnswer, LeadCot, Mix, Policy, RandomWindow, Tail
from leadspan.report.rows import Frontier, Row, RowRetention
from leadspan.tables import MISSING, listed, percent, percent_interval, points


def sample_size(frontier: Frontier) -> str:
    """The problems, samples and seeds behind the rows, `240 problems x 1 sample x 3 seeds`; all sizes are named."""
    sizes = dict.fromkeys((row.num_problems, row.samples_per_problem) for row in frontier.rows)
    text = " or ".join(
        f"{problems:,} problem{'s' * (problems > 1)} x {num} sample{'s' * (num > 1)}" for problems, num in sizes
    )
    numbers = sorted({len(row.seeds) for row in frontier.students} or {1})
    few_to_many = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    return f"{text} x {few_to_many} seeds" if numbers[-1] > 1 else text


def retention_text(row: Row) -> str:
    """Retention; the difference where it was refused; `reference` for a row with which others are compared."""
    if row.retention is None:
        return "reference" if row.is_reference else MISSING
    if row.retention.ratio:
        return percent_interval(row.retention.ratio)
    return points(row.retention.difference) if row.retention.difference else MISSING


def captions(frontier: Frontier) -> list[str]:
    """The sentences under a table of the rows: how the intervals were made, refused retentions, the notes."""
    rows = frontier.rows
    refused = _refusals("Retention", {row.label: row.retention for row in rows if row.retention})
    refused += _refusals("The share of the gain", {row.label: row.gain for row in rows if row.gain})
    one_seed = [row.label for row in rows if row.role == "student" and len(row.seeds) == 1]
    several = [row for row in rows if row.role == "student" and len(row.seeds) > 1]
    # They share a single seed with their uncut run.
    of_one_seed = [row.label for row in several if row.retention and len(row.retention.seeds) == 1]
    level = percent(rows[0].accuracy.level)
    has_seeds = any(len(row.seeds) > 1 for row in rows)
    above = ", runs above by Student's t" if has_seeds else ""
    not_covered = f"for {listed(one_seed)} do not cover" if one_seed else "cover"
    coverage = f", which {not_covered if has_seeds else 'do not cover'} the variation between seeds"
    coverage += f" (the shares of {listed(of_one_seed)} do not: one seed is shared)" if of_one_seed else ""
    return [
        # `Interval.method` in the JSON has the case of each figure.
        f"Intervals of {level}{coverage}: bootstrap over problems, samples within{above}, paired where two are "
        "compared; Wilson's score where outcomes are all equal or rare.",
        *refused,
        *frontier.notes,
    ]


def _refusals(what: str, compared: Mapping[str, RowRetention]) -> list[str]:
    """One sentence for each reason of a refusal, with the rows that it holds for unless it holds for all."""
    labels: dict[str, list[str]] = {}
    for label, comparison in compared.items():
        if comparison.reason:
            labels.setdefault(comparison.reason, []).append(label)
    whose = {
        reason: f" of {listed(refused)}" if len(refused) < len(compared) else "" for reason, refused in labels.items()
    }
    return [f"{what}{rows} was refused: {reason}." for reason, rows in whose.items()]


def cuts_explained(rows: Sequence[Row]) -> list[str]:
    """One sentence on the meaning of its name for the first student of each kind of cut."""
    sentences: dict[str, str] = {}
    for row in rows:
        policy = row.runs[0].policy
        if row.role == "student" and policy is not None:
            # Students of one kind differ in their share alone, which the first sentence explains.
            kind = f"{getattr(policy, 'kind', '')} {getattr(policy.inner, 'kind', '')} {row.rollout is None}"
            words = _cut_words(policy)
            if row.rollout:
                words = f"rollouts, which it drew itself{f', and from {words}' if row.rollout.has_traces else ''}"
            sentences.setdefault(kind, f"`{row.label}` learnt from {words}.")
    return list(sentences.values())


def _cut_words(policy: Policy) -> str:
    """The part of a trace that a cut keeps, for a reader who does not know the names of policies."""
    if isinstance(policy, Mix):
        return f"{_cut_words(policy.policy)}; {percent(policy.whole_share)} of the traces were left whole"
    if isinstance(policy, Budget):
        return f"the first {policy.num_tokens:,} tokens of each trace"
    share = "" if policy.proportion is None else percent(policy.proportion)
    words: dict[type[Policy], str] = {
        Full: "whole traces: prompt, chain of thought and answer",
        Lead: f"the first {share} of the tokens of each trace, prompt included",
        LeadCot: f"the prompt and the first {share} of each chain of thought, without an answer",
        LeadAnswer: f"the prompt, the first {share or 'part'} of each chain of thought, and the answer",
        Tail: f"the last {share} of the tokens of each trace",
        RandomWindow: "the prompt and a random window of each chain of thought, as long as a lead of "
        f"{share} would keep",
    }
    return words.get(type(policy), f"the part of each trace that the policy `{policy.label}` keeps (see docs/cuts.md)")
