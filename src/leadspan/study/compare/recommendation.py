"""The answer of a study in one sentence: the cheapest policy shown to keep what is asked, or that none is.

Shown means that the lower end of retention's interval is at the target or above it; no end is corrected for choosing
among several policies, whose number the sentence gives. A policy that costs no less than its uncut run, or whose cost
cannot be told from it, is not recommended. The sentence brings its evidence:
problems, samples, seeds, the interval, what was saved, and how often the student ends its answers. Beside it stands how
the policy does against its controls, and, where nothing is shown, what a showing would take.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from leadspan.errors import SettingsError
from leadspan.results import Interval
from leadspan.study.compare.conditions import is_random_window
from leadspan.study.compare.cost_axes import COST_WORDS, CostName
from leadspan.study.compare.needed import needed
from leadspan.study.compare.rows import Beside, Frontier, Row
from leadspan.study.compare.savings import saved_text, saves
from leadspan.study.compare.words import percent, percent_interval, points

_CONTROL_WORDS = {
    "equal_tokens": "the same cut trained on as many tokens as the uncut run",
    "equal_steps": "the same cut trained for as many steps as the uncut run",
    "random_window": "a random window of the same length",
    "cross_entropy": "the same cut without its teacher",
}


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What a frontier recommends.

    Attributes:
        task: Task name.
        target: Share of the uncut run's accuracy that has to be kept.
        cost: The cost that is to be small.
        row: The recommended policy; None where none is shown to meet the target, or none of these saves the cost.
        closest: The recommended policy, or else the cheapest that is shown to meet the target, or else the one that
            keeps the most; None where none was compared.
        sentence: The answer with its evidence.
        controls: One sentence for each control of `closest`.
        needed: What would be needed to show the target; empty where it is shown, or where nothing can be said.
        others: The answers of policies that are compared with another uncut run, such as those of another student.
    """

    task: str
    target: float
    cost: CostName
    row: Row | None
    closest: Row | None
    sentence: str
    controls: tuple[str, ...] = ()
    needed: str = ""
    others: tuple["Recommendation", ...] = ()

    @property
    def text(self) -> str:
        """All of it, as a paragraph."""
        further = [other.text for other in self.others]
        return " ".join(filter(None, (self.sentence, self.needed, *self.controls, *further)))


def recommend(frontier: Frontier, target: float = 0.9, cost: CostName = "seconds") -> Recommendation:
    """The cheapest policy whose retention's lower bound meets a target, if it costs less than its uncut run.

    Policies that are compared with different uncut runs, such as those of several students, are answered apart: the
    answer is that of the uncut run with the most policies (the first of equals), and `others` holds the rest. Controls,
    random windows among them, are no candidates; nor is a policy with a refused ratio, or compared with nothing.

    Args:
        frontier: All conditions on one task.
        target: Share of the uncut run's accuracy to keep, above 0.
        cost: The cost that orders the policies.

    Raises:
        SettingsError: The target is no share, or a trained row lacks that cost.
    """
    if not 0 < target < inf:
        raise SettingsError(f"target {target:g}: give a share of the uncut run's accuracy above 0, such as 0.9")
    check_cost(frontier, cost)
    policies = [row for row in frontier.by_cost(cost).students if _is_candidate(row)]
    groups = {label: [row for row in policies if row.reference == label] for label in _references(frontier, policies)}
    if not groups:
        return Recommendation(frontier.task, target, cost, None, None, *_nothing(policies, frontier))
    first, *further = sorted(groups.values(), key=lambda rows: -len(rows))
    others = tuple(_answer(frontier, rows, target, cost) for rows in further)
    return replace(_answer(frontier, first, target, cost), others=others)


def _is_candidate(row: Row) -> bool:
    """Whether a row is a policy to recommend: a cut, and no control, asked for as one or given as an axis."""
    return row.control is None and row.cut_kind != "full" and not is_random_window(row.runs[0])


def _references(frontier: Frontier, policies: Sequence[Row]) -> list[str]:
    """Labels of the uncut runs that policies are compared with, in the order of the frontier."""
    used = {row.reference for row in policies}
    return [row.label for row in frontier.rows if row.label in used]


def _answer(frontier: Frontier, policies: list[Row], target: float, cost: CostName) -> Recommendation:
    """The answer for policies that are compared with one uncut run, cheapest first."""
    compared = [(row, row.kept.ratio) for row in policies if row.kept and row.kept.ratio]
    if not compared:
        return Recommendation(frontier.task, target, cost, None, None, *_nothing(policies, frontier))
    shown = [row for row, ratio in compared if ratio.low >= target]
    chosen = next((row for row in shown if saves(frontier, row, cost)), None)
    closest = chosen or (shown[0] if shown else max(compared, key=lambda pair: pair[1].value)[0])
    say = _shown if chosen else _shown_without_saving if shown else _not_shown
    return Recommendation(
        task=frontier.task,
        target=target,
        cost=cost,
        row=chosen,
        closest=closest,
        sentence=say(frontier, closest, target, cost, len(compared)),
        controls=tuple(beside_text(closest, beside) for beside in closest.beside)
        or (f"No control of {closest.label} was run.",),
        needed="" if shown else needed(frontier, closest, target),
    )


def check_cost(frontier: Frontier, cost: CostName) -> None:
    """Refuse a cost that not every trained row has.

    Raises:
        SettingsError: One lacks it.
    """
    if frontier.cost_names and cost not in frontier.cost_names:
        known = ", ".join(COST_WORDS[name] for name in frontier.cost_names)
        remedy = "money needs plan.price_per_hour in every recipe, energy a GPU with NVML"
        raise SettingsError(f"cost {COST_WORDS[cost]}: not known of every run ({known} are); {remedy}")


def beside_text(row: Row, beside: Beside) -> str:
    """A policy against one control, as a sentence."""
    control = f"{beside.label} ({_CONTROL_WORDS.get(beside.control, beside.control)})"
    if beside.difference is None:
        return f"{row.label} cannot be compared with {control}: other problems."
    verb = {"better": "beats", "worse": "is worse than"}.get(beside.outcome, "is not told apart from")
    return f"{row.label} {verb} {control}: {points(beside.difference)}."


def evidence(row: Row, ratio: Interval | None = None, num_compared: int = 1) -> str:
    """What an estimate rests on: interval, how many policies it was chosen among, problems, samples, seeds."""
    seeds = len(row.kept.seeds) if row.kept and row.kept.seeds else row.num_seeds
    counts = [(row.num_problems, "problem"), (row.samples_per_problem, "sample"), (seeds, "seed")]
    size = " x ".join(f"{number:,} {word}{'s' * (number != 1)}" for number, word in counts)
    among = f", not corrected for choosing among {num_compared} policies" if num_compared > 1 else ""
    return f"{percent((ratio or row.accuracy).level)} interval{among}; {size}"


def _shown(frontier: Frontier, row: Row, target: float, cost: CostName, num_compared: int) -> str:
    return (
        f"The cheapest policy by {COST_WORDS[cost]} shown to keep {percent(target)} of {row.reference}'s accuracy is "
        f"{row.label}: it {_outcome(frontier, row, target, cost, num_compared)}."
    )


def _shown_without_saving(frontier: Frontier, row: Row, target: float, cost: CostName, num_compared: int) -> str:
    is_dearer = saves(frontier, row, cost) is False
    verb, so = ("saves", f", so that {row.reference} is the cheapest by it") if is_dearer else ("is shown to save", "")
    return (
        f"No policy shown to keep {percent(target)} of {row.reference}'s accuracy {verb} {COST_WORDS[cost]} here{so}: "
        f"{row.label} {_outcome(frontier, row, target, cost, num_compared)}."
    )


def _not_shown(frontier: Frontier, row: Row, target: float, cost: CostName, num_compared: int) -> str:
    return (
        f"No policy is shown to keep {percent(target)} of {row.reference}'s accuracy; {row.label} comes closest: it "
        f"{_outcome(frontier, row, target, cost, num_compared)}."
    )


def _outcome(frontier: Frontier, row: Row, target: float, cost: CostName, num_compared: int) -> str:
    """What it kept, saved and ended."""
    assert row.kept and row.kept.ratio, "the caller picks compared rows"
    return (
        f"kept {_kept(row.kept.ratio, target)} ({evidence(row, row.kept.ratio, num_compared)})"
        f"{saved_text(frontier, row, cost)}; {_ended(frontier, row)}"
    )


def _kept(ratio: Interval, target: float) -> str:
    """Retention, with a decimal where its lower end would otherwise read as the target itself."""
    return percent_interval(ratio, 1 if round(100 * ratio.low) == round(100 * target) else 0)


def _ended(frontier: Frontier, row: Row) -> str:
    full = frontier.row(row.reference)
    beside = f" ({full.label}: {percent(full.termination.value)})" if full else ""
    return f"it ended {percent(row.termination.value)} of its answers{beside}"


def _nothing(policies: Sequence[Row], frontier: Frontier) -> tuple[str, tuple[str, ...], str]:
    """Why nothing can be recommended, with the differences that were found in place of ratios."""
    refused = next((row.kept.reason for row in policies if row.kept and row.kept.reason), None)
    is_cut = any(row.cut_kind != "full" for row in frontier.students)
    untrained = "the only cuts are controls" if is_cut else "no cut was trained"
    reason = refused or ("none was compared with an uncut run" if policies else untrained)
    found = [
        f"{row.label} {points(row.kept.difference)}"
        for row in policies
        if row.kept and row.kept.difference and not row.kept.ratio
    ]
    differences = f" Difference in accuracy: {', '.join(found)}." if found else ""
    return f"No policy can be recommended: {reason}.{differences}", (), ""
