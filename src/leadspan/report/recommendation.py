"""The answer of a study in one sentence: the cheapest policy shown to keep the target, or that none is.

A policy is shown to keep the target where the lower end of its retention's interval reaches it. The intervals of all
policies among which it was chosen hold together (`simultaneous_retention`): the best of many looks better than it is,
and with separate intervals some policy would pass too often by chance. A policy that costs no less than its uncut run,
or whose saving is unclear, is not recommended. The sentence states its evidence: problems, samples, seeds, both
intervals, the saving, and how often the student ends its answers. Further sentences say how to read the retention of a
chosen policy, how it compares with its controls, and, where nothing is shown, what sample would show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf
from statistics import fmean, stdev
from typing import Literal

from leadspan.errors import EvaluationError, SettingsError
from leadspan.report.frontier import shared_seeds
from leadspan.report.rows import COST_WORDS, Frontier, Row, by_cost
from leadspan.settings import Settings, validate
from leadspan.statistics.power import Claim, expected_from, problems_needed
from leadspan.tables import CostName, listed, percent, percent_interval, points, quantity

_CONTROL_WORDS = {
    "equal_tokens": "the same cut trained on as many tokens as the uncut run",
    "equal_steps": "the same cut trained for as many steps as the uncut run",
    "random_window": "a random window of the same length",
    "cross_entropy": "the same cut without its teacher",
}
_VERBS = {"better": "beats", "worse": "is worse than", "unclear": "is not shown to be better or worse than"}


class Answer(Settings):
    """What is recommended among the policies that are compared with one uncut run."""

    recommended: str | None
    """Label of the cheapest policy whose simultaneous lower bound of retention reaches the target and that costs less
    than its uncut run; null where there is none."""
    closest: str | None
    """The recommended policy, else the cheapest that is shown to reach the target, else the one that keeps the most;
    null where none was compared."""
    sentence: str
    """The answer with its evidence."""
    selection: str = ""
    """How to read the retention of a policy that was chosen among several; empty for one that was not."""
    needed: str = ""
    """The sample that would show the target; empty where it is shown already, or where nothing can be said."""
    against_controls: list[str] = []
    """One sentence for each control of `closest`."""


def recommend(frontier: Frontier, target: float = 0.9, cost: CostName = "seconds") -> list[Answer]:
    """The cheapest policy whose simultaneous lower bound of retention reaches a target, if it costs less than uncut.

    Policies that are compared with different uncut runs, such as those of several students, get separate answers. The
    answer for the uncut run with the most policies comes first (the first of equals). Controls, which include random
    windows, are no candidates; nor is a policy whose ratio was refused, or that is compared with nothing.

    Args:
        frontier: All conditions on one task.
        target: Share of the uncut run's accuracy to keep, above 0.
        cost: The cost that ranks the policies; FLOPs replace times that cannot be compared.

    Raises:
        SettingsError: The target is not above 0, or a trained row lacks that cost.
    """
    if not 0 < target < inf:
        raise SettingsError(f"target {target:g}: give a share of the uncut run's accuracy above 0, such as 0.9")
    cost = ranking_cost(frontier, cost)
    # Cheapest first: the first policy that is shown to reach the target is the answer.
    policies = [row for row in by_cost(frontier.students, cost) if row.is_candidate]
    references = {row.reference for row in policies}
    groups = [
        [row for row in policies if row.reference == full.label] for full in frontier.rows if full.label in references
    ]
    # The uncut run with the most policies is the one that the study is about.
    answers = [_answer(frontier, rows, target, cost) for rows in sorted(groups, key=lambda rows: -len(rows))]
    return answers or [_nothing(frontier, policies)]


def ranking_cost(frontier: Frontier, cost: CostName) -> CostName:
    """The cost that ranks the rows: the requested one, or FLOPs in place of times that cannot be compared.

    Raises:
        SettingsError: A trained row lacks the cost.
    """
    if frontier.cost_names and cost not in frontier.cost_names:
        names = ", ".join(COST_WORDS[name] for name in frontier.cost_names)
        remedy = "money needs plan.price_per_hour in every recipe, in one currency, energy a GPU with NVML"
        raise SettingsError(f"cost {COST_WORDS[cost]}: not known for every run ({names} are); {remedy}")
    return "flops" if cost == "seconds" and frontier.clock else cost


def _answer(frontier: Frontier, policies: list[Row], target: float, cost: CostName) -> Answer:
    """The answer for policies that are compared with one uncut run, cheapest first."""
    ratios = [(row, row.retention.ratio.value) for row in policies if row.retention and row.retention.ratio]
    if not ratios:
        return _nothing(frontier, policies)
    bounds = [(row, row.retention.simultaneous) for row, _ in ratios if row.retention]
    shown = [row for row, together in bounds if together and together.low >= target]
    # How each policy changes the cost; a difference within rounding or seed noise is no saving.
    savings = {row.label: saving.change for row in shown if (saving := _saving(frontier, row, cost))}
    chosen = next((row for row in shown if savings.get(row.label) == "saved"), None)
    # A policy that is shown to keep the target but saves nothing is named before one that merely keeps the most.
    closest = chosen or (shown[0] if shown else max(ratios, key=lambda pair: pair[1])[0])
    word, share, outcome = COST_WORDS[cost], percent(target, None), _outcome(frontier, closest, target, cost)
    # They may have kept more than the closest one, so the answer does not pass over them.
    refused = _differences(policies)
    full = closest.reference
    if chosen:
        sentence = f"The cheapest policy by {word} shown to keep {share} of {full}'s accuracy is {chosen.label}: it "
    elif shown:
        saving = f"is shown to save {word} here"
        if savings.get(closest.label) == "added":
            saving = f"saves {word} here, so {full} is the cheapest by {word}"
        sentence = f"No policy shown to keep {share} of {full}'s accuracy {saving}: {closest.label} "
    else:
        among = " of those with a retention" if refused else ""
        sentence = f"No policy is shown to keep {share} of {full}'s accuracy; {closest.label} comes closest{among}: it "
    together = closest.retention and closest.retention.simultaneous
    selection = ""
    if len(ratios) > 1 and together:
        # The best of several measured values is above its own expectation on average (the winner's curse).
        selection = (
            f"{closest.label} was chosen among {len(ratios)} policies because it did well here. Such a policy does "
            f"less well on average when it is evaluated again, so {percent(together.value)} is no forecast: plan with "
            f"the lower end, {percent(together.low, _digits(together.low, target))}, and evaluate {closest.label} on "
            "new seeds or problems."
        )
    controls: list[str] = []
    for control in closest.against_controls:
        name = f"{control.label} ({_CONTROL_WORDS.get(control.control, control.control)})"
        if control.difference is None:
            controls.append(
                f"{closest.label} cannot be compared with {name}: they were evaluated on different problems, or "
                "sampled with different settings."
            )
        else:
            controls.append(f"{closest.label} {_VERBS[control.outcome]} {name}: {points(control.difference)}.")
    return Answer(
        recommended=chosen.label if chosen else None,
        closest=closest.label,
        sentence=f"{sentence}{outcome}.{f' No retention could be computed for others. {refused}' if refused else ''}",
        selection=selection,
        needed="" if shown else sample_size_needed(frontier, closest, target),
        against_controls=controls or [f"No control of {closest.label} was run."],
    )


def _nothing(frontier: Frontier, policies: Sequence[Row]) -> Answer:
    """Why nothing can be recommended, with the differences in accuracy in place of ratios."""
    refused = next((row.retention.reason for row in policies if row.retention and row.retention.reason), None)
    is_cut = any(row.cut_kind != "full" for row in frontier.students)
    untrained = "the only cuts are controls" if is_cut else "no cut was trained"
    uncompared = "none was compared with an uncut run; train one with 'cut={kind: full}' name=full"
    reason = refused or (uncompared if policies else untrained)
    text = " ".join(filter(None, (f"No policy can be recommended: {reason}.", _differences(policies))))
    return Answer(recommended=None, closest=None, sentence=text)


def _differences(policies: Sequence[Row]) -> str:
    """The differences in accuracy of policies whose ratio was refused; "" where there is none."""
    differences = listed(
        f"{row.label} {points(row.retention.difference)}"
        for row in policies
        if row.retention and row.retention.difference and not row.retention.ratio
    )
    return f"Difference in accuracy: {differences}." if differences else ""


def _outcome(frontier: Frontier, row: Row, target: float, cost: CostName) -> str:
    """The retention of a policy with its evidence, the saving, and the share of its answers that ended.

    `kept 95 [90, 99] % (95 % interval; ...) and saved 48 % of the time (5.2 min instead of 10 min); it ended 99 % ...`.
    """
    assert row.retention and row.retention.ratio, "the caller picks compared rows"
    ratio, together = row.retention.ratio, row.retention.simultaneous
    # Intervals say little without the numbers that they rest on.
    counts = [
        (row.num_problems, "problem"),
        (row.samples_per_problem, "sample"),
        (len(row.retention.seeds) or len(row.seeds), "seed"),
    ]
    size = " x ".join(f"{number:,} {word}{'s' * (number != 1)}" for number, word in counts)
    interval = f"{percent(ratio.level)} interval"
    if together is None:
        interval += " of this policy alone"
    elif together.num_policies > 1:
        alone = f"[{100 * ratio.low:.0f}, {100 * ratio.high:.0f}]"
        interval += f" for all {together.num_policies} policies together, {alone} for this one alone"
    shown = together or ratio
    chosen = _saving(frontier, row, cost)
    # The sentence adds tokens to every cost, and time to tokens where times can be compared.
    names: tuple[CostName, ...] = (cost, "tokens" if cost != "tokens" else "seconds")
    # Where this cost gives no reason to choose the policy, a reader wants to know whether another does.
    names = names if chosen and chosen.change == "saved" else (*names, "tokens", "flops")
    savings = list(filter(None, (_saving(frontier, row, name) for name in dict.fromkeys(names))))
    changes: list[str] = []
    for verb in ("saved", "added"):
        moved = [s for s in savings if s.change == verb]
        texts = [f"{percent(abs(1 - s.share))} of the {COST_WORDS[s.name]} ({s.figures})" for s in moved]
        changes += [f"{verb} {' and '.join(texts)}"] if texts else []
    saved = f" and {', but '.join(changes)}" if changes else ""
    # What is within rounding or seed noise is no saving, and is said apart.
    same = [f"the same {COST_WORDS[s.name]} ({s.figures})" for s in savings if s.change == "same"]
    saved += f" and took {' and '.join(same)}" if same else ""
    for saving in savings:
        if saving.change == "unclear":
            saved += f"; whether it saves {COST_WORDS[saving.name]} is unclear ({saving.figures})"
    full = frontier.row(row.reference)
    of_full = f" ({full.label}: {percent(full.termination.value)})" if full else ""
    ended = f"it ended {percent(row.termination.value)} of its answers{of_full}"
    return f"kept {percent_interval(shown, _digits(shown.low, target))} ({interval}; {size}){saved}; {ended}"


def _digits(share: float, target: float) -> int:
    """The fewest decimals of a percentage that show on which side of the target a share is."""
    exact, goal = round(100 * share, 9), round(100 * target, 9)  # beyond are errors of rounding
    sides = [(round(exact, n) > goal, round(exact, n) < goal) for n in range(10)]
    return sides.index(sides[-1])


_SAME = 0.005
"""Shares closer to 1 than this read as 100 %."""


@dataclass(frozen=True, slots=True)
class _Saving:
    """What a policy does to one cost of its uncut run.

    `share` is the ratio of their means; `change` is `same` where it rounds to 100 %, and `unclear` within the noise of
    seeds. `figures` reads `7 s ± 1 s instead of 10 s ± 1 s, sd over seeds`.
    """

    name: CostName
    share: float
    change: Literal["saved", "added", "same", "unclear"]
    figures: str


def _saving(frontier: Frontier, row: Row, name: CostName) -> _Saving | None:
    full = frontier.row(row.reference)
    # Times that cannot be compared say more about the machine than about the policy.
    if full is None or (name == "seconds" and frontier.clock):
        return None
    cost, of_full = ((side.costs or {}).get(name) for side in (row, full))
    if cost is None or of_full is None or cost.of_full is None:
        return None
    share = cost.of_full
    # Means and standard deviations over the seeds that the share compares.
    sides = zip((row, full), (cost, of_full), shared_seeds(row.seeds, full.seeds), strict=True)
    values = [[v for v, seed in zip(c.values, side.seeds, strict=True) if seed in seeds] for side, c, seeds in sides]
    means, sds = list(map(fmean, values)), [stdev(of_side) if len(of_side) > 1 else 0.0 for of_side in values]
    if abs(1 - share) < _SAME:
        change, between = "same", "and"
    # The noise is the standard deviation of the difference between two single runs: variances add.
    elif abs(means[0] - means[1]) <= hypot(*sds):
        change, between = "unclear", "against"
    else:
        change, between = "saved" if share < 1 else "added", "instead of"
    # Without a standard deviation that rounds to nothing.
    spreads = [f" ± {quantity(name, sd)}" if sd > _SAME * mean else "" for mean, sd in zip(means, sds, strict=True)]
    figures = f"{quantity(name, means[0])}{spreads[0]} {between} {quantity(name, means[1])}{spreads[1]}"
    return _Saving(name, share, change, figures + (", sd over seeds" if any(spreads) else ""))


MIN_SEEDS = 2
"""One seed says nothing about the variation between seeds, so a plan has at least two."""


def sample_size_needed(frontier: Frontier, row: Row, target: float) -> str:
    """The problems and seeds that would show the target, with the assumptions; empty where nothing can be said."""
    full = frontier.row(row.reference)
    assert full is not None and row.retention and row.retention.ratio, "the caller picks compared rows"
    ratio, together = row.retention.ratio.value, row.retention.simultaneous
    if ratio <= target:
        return (
            f"At the {percent(ratio, _digits(ratio, target))} measured, no number of problems or seeds will show "
            f"{percent(target, None)}: keep more of the traces, or lower the target."
        )
    level = together.level_alone if together else Claim().level
    command = "`leadspan power`" if level == Claim().level else f"`leadspan power --level {level:.4g}`"
    settings = {"claim": target, "level": level}
    policy, reference = ([dict(result.correct) for result in side.evaluations] for side in (row, full))
    try:
        claim, is_estimated = expected_from(policy, reference, settings), True
    except EvaluationError:
        # The runs hold too little to estimate the spread from: what they do not show is assumed.
        measured = {"retention": ratio, "accuracy": full.accuracy.value}
        try:
            claim, is_estimated = validate(Claim, {**measured, **settings}, "power"), False
        except SettingsError:
            return ""  # such as an accuracy of 1
    except SettingsError:
        return ""  # the runs contradict the claim
    sd = 100 * claim.seed_sd
    assumed = f"accuracy has a standard deviation of {sd:g} percentage point{'s' * (sd != 1)} between seeds"
    if not is_estimated:
        spread = f"{percent(claim.between)} of the variance of answers lies between problems"
        correlation = f"the two students' chances have a correlation of {claim.correlation:g} over problems"
        assumed = f", and if {spread}, {correlation} and {assumed} (assumed, as these runs do not show it)"
    elif max(len(policy), len(reference)) == 1:
        assumed = f", and if {assumed} (assumed, as one seed does not show it)"
    else:
        assumed = ""
    samples, seeds = row.samples_per_problem, max(MIN_SEEDS, len(row.retention.seeds))
    # As many seeds as now, then more: 20 is where Student's t is close to the normal, and more seeds gain little.
    for number in dict.fromkeys((seeds, 2 * seeds, 4 * seeds, 20)):
        problems = problems_needed(claim, samples, number)
        # Nobody would run a plan of more than 20 times the problems.
        if problems is not None and problems <= 20 * row.num_problems:
            size = f"{problems:,} problems with {samples} sample{'s' * (samples > 1)} each and {number} seeds"
            chance = f"with a probability of {percent(claim.power)} ({command})"
            return f"If what was measured is true{assumed}, {size} would show it {chance}."
    return f"If what was measured is true{assumed}, showing it takes many times more problems and seeds ({command})."
