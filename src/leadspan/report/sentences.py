"""What the rows of a frontier say, one sentence at a time.

The sentences are computed from the rows and expect no outcome: a cut may keep everything or nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from leadspan.data.truncation import Budget, Full, Lead, LeadAnswer, LeadCot, Mix, Policy, RandomWindow, Tail
from leadspan.data.truncation.policy import STOP_REMEDY, stop_warning
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult
from leadspan.report.break_points import BreakPoint
from leadspan.report.costs import relative_text
from leadspan.report.rows import Frontier, Row
from leadspan.statistics.intervals import Interval, retention
from leadspan.statistics.resampling import Scores
from leadspan.tables import MISSING, CostName, percent, percent_interval, points

MIN_TERMINATION_RATE = 0.9
"""An uncut run that ends a smaller share of its answers gets a warning: cuts that end less cannot be judged by it."""
MUCH_LESS = 0.1
"""A student that ends so many fewer of its answers than its uncut run, in share, has not learned to end them."""
MAX_EXAMPLES = 2
"""Mixes that are named as ending their answers."""


def sample_size(frontier: Frontier) -> str:
    """How much the rows were measured on, `240 problems x 1 sample x 3 seeds`; several sizes are all named."""
    sizes = dict.fromkeys((row.num_problems, row.samples_per_problem) for row in frontier.rows)
    text = " or ".join(f"{problems:,} problems x {num} sample{'s' * (num > 1)}" for problems, num in sizes)
    numbers = sorted({len(row.seeds) for row in frontier.students} or {1})
    few_to_many = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    return f"{text} x {few_to_many} seeds" if numbers[-1] > 1 else text


def retention_text(row: Row) -> str:
    """Retention, or the difference where it was refused, or that others are compared with the row."""
    if row.retention is None:
        return "reference" if row.is_reference else MISSING
    if row.retention.ratio:
        return percent_interval(row.retention.ratio)
    return points(row.retention.difference) if row.retention.difference else MISSING


def gain_text(row: Row) -> str:
    """Base-normalised retention, or a dash where there is none."""
    return percent_interval(row.gain.ratio) if row.gain and row.gain.ratio else MISSING


def cuts_explained(rows: Sequence[Row]) -> list[str]:
    """One sentence for the first student of each kind of cut: what its name means."""
    sentences: dict[str, str] = {}
    for row in rows:
        policy = row.runs[0].policy
        if row.role == "student" and policy is not None:
            kind = f"{getattr(policy, 'kind', '')} {getattr(policy.inner, 'kind', '')}"
            sentences.setdefault(kind, f"`{row.label}` learned from {_cut_words(policy)}.")
    return list(sentences.values())


def _cut_words(policy: Policy) -> str:
    """What a cut keeps of a trace, for a reader who knows no policy by its name."""
    share = "" if policy.proportion is None else percent(policy.proportion)
    match policy:
        case Mix():
            return f"{_cut_words(policy.policy)}, but {percent(policy.whole_share)} of the traces were kept whole"
        case Full():
            return "whole traces: prompt, chain of thought and answer"
        case Lead():
            return f"the first {share} of the tokens of each trace, prompt included"
        case LeadCot():
            return f"the prompt and the first {share} of each chain of thought, without an answer"
        case LeadAnswer():
            return f"the prompt, the first {share or 'part'} of each chain of thought, and the answer"
        case Tail():
            return f"the last tokens of each trace, {share} of them"
        case RandomWindow():
            return f"the prompt and a random window of each chain of thought, as long as the lead of {share}"
        case Budget():
            return f"the first {policy.num_tokens:,} tokens of each trace"
        case _:
            return f"the part of each trace that its policy `{policy.label}` keeps (docs/cuts.md)"


def captions(frontier: Frontier) -> list[str]:
    """What belongs under a table of the rows: how the intervals were made, refused retentions, the notes."""
    rows = frontier.rows
    ratios = [row.retention.ratio or row.retention.difference for row in rows if row.retention]
    intervals = [*(row.accuracy for row in rows), *(row.termination for row in rows), *filter(None, ratios)]
    methods = "; ".join(method for method, _ in Counter(interval.method for interval in intervals).most_common())
    refused = dict.fromkeys(row.retention.reason for row in rows if row.retention and row.retention.reason)
    without_gain = dict.fromkeys(row.gain.reason for row in rows if row.gain and row.gain.reason)
    one_seed = [row.label for row in rows if row.role == "student" and len(row.seeds) == 1]
    coverage = f", which for {', '.join(one_seed)} do not cover how seeds differ" if one_seed else ", seeds included"
    if all(len(row.seeds) == 1 for row in rows):
        coverage = ", which do not cover how seeds differ"
    return [
        f"Intervals of {percent(rows[0].accuracy.level)}{coverage}: {methods}.",
        *(f"Retention refused: {reason}." for reason in refused),
        *(f"Share of the gain refused: {reason}." for reason in without_gain),
        *frontier.notes,
    ]


def findings(frontier: Frontier) -> list[str]:
    """One sentence for each student compared with an uncut run; without an uncut run, for each student."""
    students = {row.label: row for row in frontier.students}
    compared = [row for row in students.values() if row.retention] or list(students.values())
    return [_finding(row, students.get(row.reference or ""), bool(frontier.clock)) for row in compared]


def _finding(row: Row, full: Row | None, is_without_time: bool) -> str:
    counted = "problems" if row.samples_per_problem == 1 else "samples"
    ended = f"it terminated on {percent(row.termination.value)} of {counted}"
    if row.retention is None or full is None:
        return f"{row.label} reached {percent_interval(row.accuracy)} accuracy; {ended}."
    if row.retention.ratio:
        outcome = f"kept {percent_interval(row.retention.ratio)} of {full.policy}'s accuracy"
    elif row.retention.difference:
        outcome = f"scored {points(row.retention.difference)} against {full.policy} (retention refused)"
    else:
        outcome = f"reached {percent_interval(row.accuracy)} accuracy (not comparable with {full.policy})"
    names: dict[CostName, str] = {"tokens": "tokens"}
    names |= {"flops": "FLOPs"} if is_without_time else {"seconds": "time"}
    shares = [
        f"{relative_text(row.costs[name])} of the {word}"
        for name, word in names.items()
        if row.costs and row.costs[name].of_full is not None
    ]
    costs = f" at {' and '.join(shares)}" if shares else ""
    return f"{row.label} {outcome}{costs}; {ended} ({full.policy}: {percent(full.termination.value)})."


def teacher_warnings(frontier: Frontier) -> list[str]:
    """One sentence for each teacher that is shown to be worse than an uncut student; none where no student is uncut."""
    warnings: list[str] = []
    for teacher in (row for row in frontier.rows if row.role == "teacher"):
        for full in (row for row in frontier.students if row.is_reference):
            gap = _difference(teacher, full, lambda result: result.correct)
            if gap is not None and gap.high < 0:
                warnings.append(
                    f"The teacher solves less than its student: {teacher.label} {percent_interval(teacher.accuracy)} "
                    f"of {frontier.task}, {full.label} {percent_interval(full.accuracy)} ({points(gap)}). Check the "
                    "teacher's weights, chat template and max_new_tokens before comparing cuts."
                )
                break
    return warnings


def stop_warnings(frontier: Frontier) -> list[str]:
    """Sentences on uncut runs that end few of their answers, and on students that end far fewer than theirs."""
    students = frontier.students
    alone = [row for row in students if row.reference is None]
    warnings = [_few_ended(row) for row in alone if row.termination.value < MIN_TERMINATION_RATE]
    for full in alone:
        compared = [row for row in students if row.reference == full.label]
        behind = [row for row in compared if _ends_much_less(row, full)]
        if behind:
            ending = [row for row in compared if row not in behind]
            rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in behind)
            remedies = "; ".join(filter(None, (_remedy(kind, behind, ending) for kind in ("cut", "mix", "full"))))
            full_rate = f"{full.label} ({percent(full.termination.value)})"
            warnings.append(f"{rates} ended far fewer answers than {full_rate}; {remedies}.")
    return warnings


def _few_ended(row: Row) -> str:
    """A student that is compared with no other, and ends few of its answers."""
    run = row.runs[0]
    # What was seen of cuts says nothing of rollouts.
    warning = stop_warning({row.label: run.cut}) if run.cut is not None and not run.is_on_policy else ""
    if warning:
        return f"It ended {percent(row.termination.value)} of its answers. {warning}"
    return (
        f"{row.label} ended only {percent(row.termination.value)} of its answers, and {percent(row.cap_hit_rate)} ran "
        "into the cap on new tokens: raise max_new_tokens if they are cut short, as a cut cannot be shown to end less "
        "than that."
    )


def _ends_much_less(row: Row, full: Row) -> bool:
    """Ten points less, and not by chance where single answers are known."""
    if row.termination.value > full.termination.value - MUCH_LESS:
        return False
    gap = _difference(row, full, lambda result: result.terminated)
    return gap is None or gap.high < 0


def _remedy(kind: Literal["cut", "mix", "full"], behind: Sequence[Row], ending: Sequence[Row]) -> str:
    """What helps cuts, mixes, or uncut traces under another supervision to end; empty where none is behind."""
    kinds = {row.cut_kind if row.cut_kind in ("mix", "full") else "cut" for row in behind}
    if kind not in kinds:
        return ""
    if kind == "cut":
        mixes = sorted(
            (row for row in ending if row.cut_kind == "mix" and row.control is None),
            key=lambda row: -row.termination.value,
        )
        examples = [
            f"{row.label} ended {percent(row.termination.value)} of its answers" for row in mixes[:MAX_EXAMPLES]
        ]
        return ", ".join(examples) or STOP_REMEDY
    if kind == "mix":
        return "give the mixes more whole traces (cut.whole_share) or more steps"
    return "for those on uncut traces, see that the end of the answer is supervised (supervision.answer)"


def _difference(first: Row, second: Row, scores: Callable[[EvalResult], Scores]) -> Interval | None:
    """Mean score of one row minus another's, paired by problem; None where single answers are not known of both."""
    of_first, of_second = ([scores(result) for result in row.evaluations] for row in (first, second))
    # Results without single scores can be shown, and not compared problem by problem.
    if not all([*of_first, *of_second]):
        return None
    try:
        return retention(of_first, of_second).difference
    except EvaluationError:  # other problems
        return None


def controls_note(level: float) -> str:
    """What the figures of a table of policies against their controls are."""
    return (
        f"Paired differences on the same problems, with {percent(level)} intervals; the outcome is unclear where the "
        "interval holds 0. p: sign-flip test over problems, which speaks of these runs alone and not of other seeds."
    )


def measured_text(point: BreakPoint) -> str:
    """The measured break point with its interval, `0.36 (95 % interval: from 0.25 to uncut)`, or why there is none."""
    if point.measured is None:
        return point.reason or MISSING
    level, ends = percent(point.measured.level), _ends_text(point, point.measured.low, point.measured.high)
    return f"{point.measured.value:.2f} ({level} interval: {ends})"


def break_point_sentence(point: BreakPoint) -> str:
    """Where a family reaches the target, and what was predicted."""
    if point.measured is None:
        target = f"{percent(point.target)} of {point.reference}'s accuracy"
        text = f"{point.family}: no break point for {target}: {point.reason}"
        text += f" (interval: {_ends_text(point, *point.between)})" if point.between else ""
    else:
        measured = f"p = {measured_text(point)}"
        text = f"{point.family}: keeps {percent(point.target)} of {point.reference}'s accuracy from {measured} on"
    if point.predicted is None:
        return f"{text}; not predicted: {point.not_predicted}." if point.not_predicted else f"{text}."
    ends = f"{point.predicted.value:.2f} [{point.predicted.low:.2f}, {point.predicted.high:.2f}]"
    return f"{text}; derivations were predicted to be whole from {ends} on."


def _ends_text(point: BreakPoint, low: float, high: float) -> str:
    """The ends of the interval; an end of 0 or 1 was not measured, and the text says that nothing there was tried."""
    # The interval may reach past what was tested, where a bound is no measurement.
    untried = [f"nothing below {point.tested[0]:g} was tried"] if low == 0 else []
    if high == 1 and not point.is_continuous:
        untried += [f"nothing above {point.tested[-1]:g} was tried"] if point.tested[-1] < 1 else []
        ends = f"from {low:.2f} on" if low else "anywhere"
    else:
        upper = "uncut" if high == 1 else f"{high:.2f}"
        ends = f"from {low:.2f} to {upper}" if low else f"up to {upper}"
    return "; ".join([ends, *untried])
