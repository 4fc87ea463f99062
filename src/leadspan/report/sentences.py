"""The findings of a frontier as sentences.

The sentences are computed from the rows and presume no outcome: a cut may keep everything or nothing.
"""

from collections.abc import Callable, Sequence

from leadspan.data.truncation import Budget, Full, Lead, LeadAnswer, LeadCot, Mix, Policy, RandomWindow, Tail
from leadspan.data.truncation.policy import STOP_REMEDY
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult
from leadspan.report.break_points import BreakPoint
from leadspan.report.rows import Frontier, Row, relative_text
from leadspan.statistics.intervals import Interval, retention
from leadspan.statistics.resampling import Scores
from leadspan.tables import MISSING, CostName, percent, percent_interval, points

MIN_TERMINATION_RATE = 0.9
"""An uncut run that ends a smaller share of its answers gets a warning: it cannot show that a cut ends fewer."""
MUCH_LESS = 0.1
"""A student has not learnt to end its answers if it ends a share of them that is this much below its uncut run's."""
MAX_EXAMPLES = 2
"""Number of mixes that are named as examples of students that end their answers."""


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


def cuts_explained(rows: Sequence[Row]) -> list[str]:
    """One sentence on the meaning of its name for the first student of each kind of cut."""
    sentences: dict[str, str] = {}
    for row in rows:
        policy = row.runs[0].policy
        if row.role == "student" and policy is not None:
            # Students of one kind differ in their share alone, which the first sentence explains.
            kind = f"{getattr(policy, 'kind', '')} {getattr(policy.inner, 'kind', '')}"
            sentences.setdefault(kind, f"`{row.label}` learnt from {_cut_words(policy)}.")
    return list(sentences.values())


def _cut_words(policy: Policy) -> str:
    """The part of a trace that a cut keeps, for a reader who does not know the names of policies."""
    share = "" if policy.proportion is None else percent(policy.proportion)
    match policy:
        case Mix():
            return f"{_cut_words(policy.policy)}; {percent(policy.whole_share)} of the traces were left whole"
        case Full():
            return "whole traces: prompt, chain of thought and answer"
        case Lead():
            return f"the first {share} of the tokens of each trace, prompt included"
        case LeadCot():
            return f"the prompt and the first {share} of each chain of thought, without an answer"
        case LeadAnswer():
            return f"the prompt, the first {share or 'part'} of each chain of thought, and the answer"
        case Tail():
            return f"the last {share} of the tokens of each trace"
        case RandomWindow():
            return f"the prompt and a random window of each chain of thought, as long as a lead of {share} would keep"
        case Budget():
            return f"the first {policy.num_tokens:,} tokens of each trace"
        case _:
            return f"the part of each trace that the policy `{policy.label}` keeps (see docs/cuts.md)"


def captions(frontier: Frontier) -> list[str]:
    """The sentences under a table of the rows: how the intervals were made, refused retentions, the notes."""
    rows = frontier.rows
    refused = dict.fromkeys(row.retention.reason for row in rows if row.retention and row.retention.reason)
    without_gain = dict.fromkeys(row.gain.reason for row in rows if row.gain and row.gain.reason)
    one_seed = [row.label for row in rows if row.role == "student" and len(row.seeds) == 1]
    level = percent(rows[0].accuracy.level)
    has_seeds = any(len(row.seeds) > 1 for row in rows)
    above = ", runs above by Student's t" if has_seeds else ""
    not_covered = f"for {', '.join(one_seed)} do not cover" if one_seed else "cover"
    coverage = f", which {not_covered if has_seeds else 'do not cover'} the variation between seeds"
    return [
        # `Interval.method` in the JSON has the case of each figure.
        f"Intervals of {level}{coverage}: bootstrap over problems, samples within{above}, paired where two are "
        "compared; Wilson's score where outcomes are all equal or rare.",
        *(f"Retention was refused: {reason}." for reason in refused),
        *(f"The share of the gain was refused: {reason}." for reason in without_gain),
        *frontier.notes,
    ]


def findings(frontier: Frontier) -> list[str]:
    """One sentence for each student compared with an uncut run; without an uncut run, for each student."""
    students = {row.label: row for row in frontier.students}
    compared = [row for row in students.values() if row.retention] or list(students.values())
    # Times that cannot be compared are replaced by the operations, which can.
    costs: dict[CostName, str] = {"tokens": "tokens", **({"flops": "FLOPs"} if frontier.clock else {"seconds": "time"})}
    sentences: list[str] = []
    for row in compared:
        full = students.get(row.reference or "")
        ended = f"it ended {percent(row.termination.value)} of its answers"
        outcome = f"reached an accuracy of {percent_interval(row.accuracy)}"
        if row.retention is None or full is None:
            sentences.append(f"{row.label} {outcome}; {ended}.")
            continue
        if row.retention.ratio:
            outcome = f"kept {percent_interval(row.retention.ratio)} of {full.policy}'s accuracy"
        elif row.retention.difference:
            outcome = f"scored {points(row.retention.difference)} against {full.policy} (retention refused)"
        else:
            outcome += f" (not comparable with {full.policy})"
        shares = [
            f"{relative_text(row.costs[name])} of the {word}"
            for name, word in costs.items()
            if row.costs and row.costs[name].of_full is not None
        ]
        at_costs = f" at {' and '.join(shares)}" if shares else ""
        sentences.append(
            f"{row.label} {outcome}{at_costs}; {ended} ({full.policy}: {percent(full.termination.value)})."
        )
    return sentences


def teacher_warnings(frontier: Frontier) -> list[str]:
    """One sentence for each teacher that is shown to be worse than an uncut student."""
    warnings: list[str] = []
    for teacher in (row for row in frontier.rows if row.role == "teacher"):
        for full in (row for row in frontier.students if row.is_reference):
            gap = _difference(teacher, full, lambda result: result.correct)
            if gap is not None and gap.high < 0:
                warnings.append(
                    f"The teacher solves fewer problems of {frontier.task} than its student: {teacher.label} "
                    f"{percent_interval(teacher.accuracy)}, {full.label} {percent_interval(full.accuracy)} "
                    f"({points(gap)}). Check the teacher's weights, chat template and max_new_tokens before comparing "
                    "cuts."
                )
                break
    return warnings


def stop_warnings(frontier: Frontier) -> list[str]:
    """Sentences on uncut runs that end few of their answers, and on students that end far fewer."""
    students = frontier.students
    alone = [row for row in students if row.reference is None]
    warnings: list[str] = []
    for row in alone:
        ended, capped = percent(row.termination.value), percent(row.cap_hit_rate)
        if row.termination.value >= MIN_TERMINATION_RATE:
            continue
        if warning := row.runs[0].end_warning(row.label):
            warnings.append(f"{row.label} ended {ended} of its answers. {warning}")
        else:
            warnings.append(
                f"{row.label} ended only {ended} of its answers, and {capped} ran into the cap on new tokens: raise "
                "max_new_tokens if they are cut short; until then cuts cannot be judged by how many answers end."
            )
    for full in alone:
        compared = [row for row in students if row.reference == full.label]
        fewer = [row for row in compared if row.termination.value <= full.termination.value - MUCH_LESS]
        # Only what is no chance; results without single answers have no interval, and their rates have to do.
        gaps = [_difference(row, full, lambda result: result.terminated) for row in fewer]
        behind = [row for row, gap in zip(fewer, gaps, strict=True) if gap is None or gap.high < 0]
        if behind:
            rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in behind)
            full_rate = f"{full.label} ({percent(full.termination.value)})"
            remedies, kinds = list[str](), {row.cut_kind for row in behind}
            if kinds - {"mix", "full"}:
                # A mix of this study that does end is better advice than a rule.
                mixes = [row for row in compared if row.cut_kind == "mix" and row.control is None and row not in behind]
                best = sorted(mixes, key=lambda row: -row.termination.value)[:MAX_EXAMPLES]
                examples = [f"{row.label} ended {percent(row.termination.value)} of its answers" for row in best]
                remedies.append(", ".join(examples) or STOP_REMEDY)
            if "mix" in kinds:
                remedies.append("give the mixes more whole traces (cut.whole_share) or more steps")
            if "full" in kinds:
                end = "check that the end of the answer is supervised (supervision.answer)"
                remedies.append(f"for students of uncut traces, {end}")
            warnings.append(f"{rates} ended far fewer answers than {full_rate}; {'; '.join(remedies)}.")
    return warnings


def _difference(first: Row, second: Row, scores: Callable[[EvalResult], Scores]) -> Interval | None:
    """Mean score of one row minus another's, paired by problem; None where single answers are not known of both."""
    of_first, of_second = ([scores(result) for result in row.evaluations] for row in (first, second))
    if not all([*of_first, *of_second]):
        return None
    try:
        return retention(of_first, of_second).difference
    except EvaluationError:  # other problems
        return None


def measured_text(point: BreakPoint) -> str:
    """The measured break point with its interval, `0.36 (95 % interval: from 0.25 to uncut)`, or why there is none."""
    if point.measured is None:
        return point.reason or MISSING
    level, ends = percent(point.measured.level), _ends_text(point, point.measured.low, point.measured.high)
    return f"{point.measured.value:.2f} ({level} interval: {ends})"


def break_point_sentence(point: BreakPoint) -> str:
    """From where on a family keeps the target, and what was predicted."""
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
    return f"{text}; derivations were predicted to be complete from {ends} on."


def _ends_text(point: BreakPoint, low: float, high: float) -> str:
    """The ends of the interval; where one is 0 or 1, beyond the tested p, that nothing there was tried."""
    # 0 and 1 are no measurements but the ends of what can be tried.
    untried = [f"nothing below {point.tested[0]:g} was tried"] if low == 0 else []
    if high == 1 and not point.is_continuous:
        untried += [f"nothing above {point.tested[-1]:g} was tried"] if point.tested[-1] < 1 else []
        ends = f"from {low:.2f} on" if low else "anywhere"
    else:
        upper = "uncut" if high == 1 else f"{high:.2f}"
        ends = f"from {low:.2f} to {upper}" if low else f"up to {upper}"
    return "; ".join([ends, *untried])
