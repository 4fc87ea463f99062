"""The sample size that would show a target that no policy is shown to reach, if the observed values are true."""

from leadspan.errors import EvaluationError, SettingsError
from leadspan.report.rows import Frontier, Row
from leadspan.settings import validate
from leadspan.statistics.power import Claim, problems_needed
from leadspan.statistics.power_from_runs import expected_from
from leadspan.tables import percent

MIN_SEEDS = 2
"""One seed says nothing about the variation between seeds, so a plan has at least two."""


def sample_size_needed(frontier: Frontier, row: Row, target: float) -> str:
    """The problems and seeds that would show the target, with the assumptions; empty where nothing can be said."""
    assert row.retention and row.retention.ratio, "the caller picks compared rows"
    if row.retention.ratio.value <= target:
        return (
            f"At the {percent(row.retention.ratio.value)} measured, no number of problems or seeds will show "
            f"{percent(target)}: keep more of the traces, or lower the target."
        )
    together = row.retention.simultaneous
    level = together.level_alone if together else Claim().level
    command = "`leadspan power`" if level == Claim().level else f"`leadspan power --level {level:.4g}`"
    claim, assumed = _claim(frontier, row, {"claim": target, "level": level})
    if claim is None:
        return ""
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


def _claim(frontier: Frontier, row: Row, claim_settings: dict[str, float]) -> tuple[Claim | None, str]:
    """The claim, None where the runs contradict it, and the assumptions in place of what the runs do not show."""
    full = frontier.row(row.reference)
    assert full is not None and row.retention and row.retention.ratio, "a compared row has a reference"
    policy, reference = ([dict(result.correct) for result in side.evaluations] for side in (row, full))
    measured = {"retention": row.retention.ratio.value, "accuracy": full.accuracy.value}
    try:
        claim = expected_from(policy, reference, claim_settings)
        several = max(len(policy), len(reference)) > 1
        return claim, "" if several else f", and if {_seed_sd(claim)} (assumed, as one seed does not show it)"
    except EvaluationError:
        pass  # the runs hold too little to estimate the spread from
    except SettingsError:
        return None, ""
    try:
        claim = validate(Claim, {**measured, **claim_settings}, "power")
    except SettingsError:
        return None, ""  # such as an accuracy of 1
    spread = f"{percent(claim.between)} of the variance of answers lies between problems"
    correlation = f"the two students' chances have a correlation of {claim.correlation:g} over problems"
    return claim, f", and if {spread}, {correlation} and {_seed_sd(claim)} (assumed, as these runs do not show it)"


def _seed_sd(claim: Claim) -> str:
    points = 100 * claim.seed_sd
    return f"accuracy has a standard deviation of {points:g} percentage point{'s' * (points != 1)} between seeds"
