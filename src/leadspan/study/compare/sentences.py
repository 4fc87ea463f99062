"""What the rows of a frontier say, one sentence at a time.

The sentences are computed from the rows and expect no outcome: a cut may keep everything or nothing.
"""

from collections.abc import Sequence

from leadspan.study.compare.break_points import BreakPoint
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.words import MISSING, percent, percent_interval, points

MIN_TEACHER_ACCURACY = 0.95
"""A teacher below this has not learned the task, and its students learn its mistakes."""
MIN_TERMINATION_RATE = 0.9
"""A student below this cannot be trusted to end its answers."""


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
    """One sentence for each teacher that fails the task; what follows it in a report is then moot."""
    return [
        f"The teacher has not learned this world: {row.label} solves {percent_interval(row.accuracy)} of "
        f"{row.task}, less than {percent(MIN_TEACHER_ACCURACY)}, and its students imitate its mistakes. "
        "Train it longer before comparing cuts."
        for row in frontier.rows
        if row.role == "teacher" and row.accuracy.value < MIN_TEACHER_ACCURACY
    ]


def stop_warnings(frontier: Frontier) -> list[str]:
    """One sentence on all students that do not end their answers, and on a mix that does, if there is one."""
    running_on = [row for row in frontier.students if row.termination.value < MIN_TERMINATION_RATE]
    mixes = [row for row in frontier.students if row.cut_kind == "mix" and row not in running_on]
    if not running_on:
        return []
    rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in running_on)
    remedy = (
        ", ".join(f"{row.label} kept {percent(row.termination.value)}" for row in mixes)
        or "keep some traces whole (cut.kind: mix) or append a stop (stop: append_eos)"
    )
    rule = f"termination below {percent(MIN_TERMINATION_RATE)}"
    return [f"{rates} never learned to stop reliably ({rule}); {remedy}."]


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
    shares = [(row.costs[cost].of_full if row.costs else None, word) for cost, word in named]
    words = [f"{percent(share)} of the {word}" for share, word in shares if share is not None]
    return f" at {' and '.join(words)}" if words else ""


def _break_point_sentence(found: BreakPoint) -> str:
    if found.measured is None:
        text = f"{found.family}: no break point for {percent(found.target)}, as {found.reason}"
    else:
        place = f"p = {found.measured.value:.2f} [{found.measured.low:.2f}, {found.measured.high:.2f}]"
        text = f"{found.family}: keeps {percent(found.target)} of full's accuracy from {place} on"
    if found.predicted is None:
        return f"{text}."
    ends = f"{found.predicted.value:.2f} [{found.predicted.low:.2f}, {found.predicted.high:.2f}]"
    return f"{text}; derivations were predicted to be whole from {ends} on."
