"""What the rows of a frontier say, one sentence at a time.

The sentences are computed from the rows and expect no outcome: a cut may keep everything or nothing.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from leadspan.errors import EvaluationError
from leadspan.evaluation.resampling import Scores
from leadspan.evaluation.statistics import retention
from leadspan.results import EvalResult, Interval
from leadspan.study.compare.break_points import BreakPoint
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.savings import relative_text
from leadspan.study.compare.words import MISSING, percent, percent_interval, points

MIN_TERMINATION_RATE = 0.9
"""An uncut run below this is told: what ends less cannot be judged by it."""
MUCH_LESS = 0.1
"""A student that ends so many fewer of its answers than its uncut run, in share, has not learned to end them."""
MAX_EXAMPLES = 2
"""Mixes that are named as ending their answers."""


def sample_size(frontier: Frontier) -> str:
    """How much the rows were measured on, `240 problems x 1 sample x 3 seeds`; several sizes are all named."""
    sizes = dict.fromkeys((row.num_problems, row.samples_per_problem) for row in frontier.rows)
    text = " or ".join(f"{problems:,} problems x {num} sample{'s' * (num > 1)}" for problems, num in sizes)
    seeds = sorted({row.num_seeds for row in frontier.students} or {1})
    few_to_many = " to ".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1])))
    return f"{text} x {few_to_many} seeds" if seeds[-1] > 1 else text


def kept_text(row: Row) -> str:
    """Retention, or the difference where it was refused, or how the row stands to the reference."""
    if row.kept is None:
        return "reference" if row.is_reference else MISSING
    if row.kept.ratio:
        return percent_interval(row.kept.ratio)
    return points(row.kept.difference) if row.kept.difference else MISSING


def gained_text(row: Row) -> str:
    """Base-normalised retention, or a dash where there is none."""
    return percent_interval(row.gained.ratio) if row.gained and row.gained.ratio else MISSING


def findings(frontier: Frontier) -> list[str]:
    """One sentence for each student compared with an uncut run; without an uncut run, for each student."""
    students = {row.label: row for row in frontier.students}
    compared = [row for row in students.values() if row.kept] or list(students.values())
    return [_finding(row, students.get(row.reference or "")) for row in compared]


def teacher_warnings(frontier: Frontier) -> list[str]:
    """One sentence for each teacher that is shown to be worse than an uncut student; none where no student is uncut."""
    found: list[str] = []
    for teacher in (row for row in frontier.rows if row.role == "teacher"):
        for full in (row for row in frontier.students if row.is_reference):
            gap = _difference(teacher, full, lambda one: one.correct)
            if gap is not None and gap.high < 0:
                found.append(
                    f"The teacher solves less than its student: {teacher.label} {percent_interval(teacher.accuracy)} "
                    f"of {frontier.task}, {full.label} {percent_interval(full.accuracy)} ({points(gap)}). Check the "
                    "teacher's weights, chat template and max_new_tokens before comparing cuts."
                )
                break
    return found


def stop_warnings(frontier: Frontier) -> list[str]:
    """Sentences on uncut runs that end few of their answers, and on students that end far fewer than theirs."""
    students = {row.label: row for row in frontier.students}
    alone = [row for row in students.values() if row.reference is None]
    found = [_few_ended(row) for row in alone if row.termination.value < MIN_TERMINATION_RATE]
    for full in alone:
        compared = [row for row in students.values() if row.reference == full.label]
        behind = [row for row in compared if _ends_much_less(row, full)]
        if behind:
            ending = [row for row in compared if row not in behind]
            rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in behind)
            remedies = "; ".join(filter(None, (_remedy(kind, behind, ending) for kind in ("cut", "mix", "full"))))
            whole = f"{full.label} ({percent(full.termination.value)})"
            found.append(f"{rates} ended far fewer answers than {whole}; {remedies}.")
    return found


def _few_ended(row: Row) -> str:
    """A student that is compared with no other."""
    return (
        f"{row.label} ended only {percent(row.termination.value)} of its answers, and {percent(row.cap_hit_rate)} ran "
        "into the cap on new tokens: raise max_new_tokens if they are cut short, as cuts cannot be told to end less "
        "than that."
    )


def _ends_much_less(row: Row, full: Row) -> bool:
    """Ten points less, and not by chance where single answers are known."""
    if row.termination.value > full.termination.value - MUCH_LESS:
        return False
    gap = _difference(row, full, lambda one: one.terminated)
    return gap is None or gap.high < 0


def _remedy(kind: Literal["cut", "mix", "full"], behind: Sequence[Row], ending: Sequence[Row]) -> str:
    """What helps cuts, mixes, or uncut traces under another supervision to end; empty where none is behind."""
    own = [row for row in behind if (row.cut_kind if row.cut_kind in ("mix", "full") else "cut") == kind]
    if not own:
        return ""
    if kind == "cut":
        mixes = sorted(
            (row for row in ending if row.cut_kind == "mix" and row.control is None),
            key=lambda row: -row.termination.value,
        )
        told = [f"{row.label} ended {percent(row.termination.value)} of its answers" for row in mixes[:MAX_EXAMPLES]]
        return ", ".join(told) or "keep some traces whole (cut.kind: mix) or append a stop (stop: append_eos)"
    if kind == "mix":
        return "give the mixes more whole traces (cut.whole_share) or more steps"
    return "for those on uncut traces, see that the end of the answer is supervised (supervision.answer)"


def _difference(left: Row, right: Row, scores: Callable[[EvalResult], Scores]) -> Interval | None:
    """Mean score of one row minus another's, paired by problem; None where single answers are not known of both."""
    own, other = ([scores(found) for found in row.evaluations] for row in (left, right))
    if not all([*own, *other]):
        return None
    try:
        return retention(own, other).difference
    except EvaluationError:  # other problems
        return None


def break_point_sentences(points_found: Sequence[BreakPoint]) -> list[str]:
    """One sentence for each family: where it meets the target, and what was predicted."""
    return [_break_point_sentence(found) for found in points_found]


def _finding(row: Row, full: Row | None) -> str:
    counted = "problems" if row.samples_per_problem == 1 else "samples"
    ended = f"it terminated on {percent(row.termination.value)} of {counted}"
    if row.kept is None or full is None:
        return f"{row.label} reached {percent_interval(row.accuracy)} accuracy; {ended}."
    if row.kept.ratio:
        outcome = f"kept {percent_interval(row.kept.ratio)} of {full.policy}'s accuracy"
    elif row.kept.difference:
        outcome = f"scored {points(row.kept.difference)} against {full.policy} (retention refused)"
    else:
        outcome = f"reached {percent_interval(row.accuracy)} accuracy (not comparable with {full.policy})"
    beside = f"{full.policy}: {percent(full.termination.value)}"
    return f"{row.label} {outcome}{_relative_costs(row)}; {ended} ({beside})."


def _relative_costs(row: Row) -> str:
    """` at 50 % of the tokens and 52 % of the time`, or nothing without a reference."""
    named: tuple[tuple[CostName, str], ...] = (("tokens", "tokens"), ("seconds", "time"))
    known = [(row.costs[name], word) for name, word in named if row.costs and row.costs[name].of_full is not None]
    words = [f"{relative_text(cost)} of the {word}" for cost, word in known]
    return f" at {' and '.join(words)}" if words else ""


def controls_note(level: float) -> str:
    """What the figures of a table of policies against their controls are."""
    return (
        f"Paired differences on the same problems, with {percent(level)} intervals; told apart where the interval "
        "leaves out 0. p: sign-flip test over problems, which speaks of these runs alone and not of other seeds."
    )


def place_text(found: BreakPoint) -> str:
    """The measured place with its interval in words, `0.36 (95 % interval: from 0.25 to uncut)`, or why none is."""
    if found.measured is None:
        return found.reason or MISSING
    level, ends = percent(found.measured.level), _ends_text(found, found.measured.low, found.measured.high)
    return f"{found.measured.value:.2f} ({level} interval: {ends})"


def _ends_text(found: BreakPoint, low: float, high: float) -> str:
    """An end of 0 or 1 is no place that was measured, and is said to be none."""
    untried = [f"nothing below {found.tested[0]:g} was tried"] if low == 0 else []
    if high == 1 and not found.is_continuous:
        untried += [f"nothing above {found.tested[-1]:g} was tried"] if found.tested[-1] < 1 else []
        ends = f"from {low:.2f} on" if low else "anywhere"
    else:
        upper = "uncut" if high == 1 else f"{high:.2f}"
        ends = f"from {low:.2f} to {upper}" if low else f"up to {upper}"
    return "; ".join([ends, *untried])


def _break_point_sentence(found: BreakPoint) -> str:
    if found.measured is None:
        asked = f"{percent(found.target)} of {found.reference}'s accuracy"
        text = f"{found.family}: no break point for {asked}: {found.reason}"
        text += f" (interval: {_ends_text(found, *found.between)})" if found.between else ""
    else:
        place = f"p = {place_text(found)}"
        text = f"{found.family}: keeps {percent(found.target)} of {found.reference}'s accuracy from {place} on"
    if found.predicted is None:
        return f"{text}; not predicted: {found.not_predicted}." if found.not_predicted else f"{text}."
    ends = f"{found.predicted.value:.2f} [{found.predicted.low:.2f}, {found.predicted.high:.2f}]"
    return f"{text}; derivations were predicted to be whole from {ends} on."
