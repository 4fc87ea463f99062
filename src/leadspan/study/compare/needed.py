"""What a plan would need to show a target that no policy is shown to meet, if what was seen is true."""

from leadspan.errors import EvaluationError, SettingsError
from leadspan.evaluation.power import Claim, problems_needed
from leadspan.evaluation.power_from_runs import expected_from
from leadspan.settings import validate
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.words import percent

MIN_SEEDS = 2
"""One seed shows nothing of how seeds differ, so that none is proposed."""


def needed(frontier: Frontier, row: Row, target: float) -> str:
    """Problems and seeds that would show the target, with what was assumed; empty where nothing can be said."""
    assert row.kept and row.kept.ratio, "the caller picks compared rows"
    if row.kept.ratio.value <= target:
        return (
            f"At the {percent(row.kept.ratio.value)} seen no number of problems or seeds shows {percent(target)}: "
            "keep more of the traces, or ask for less."
        )
    found = _claim(frontier, row, target)
    if found is None:
        return ""
    claim, assumed = found
    samples, seeds = row.samples_per_problem, max(MIN_SEEDS, len(row.kept.seeds))
    for number in dict.fromkeys((seeds, 2 * seeds, 4 * seeds, 20)):
        problems = problems_needed(claim, samples, number)
        if problems is not None and problems <= 20 * row.num_problems:
            chance = f"with a probability of {percent(claim.power)} (`leadspan power`)"
            size = f"{problems:,} problems with {samples} sample{'s' * (samples > 1)} each and {number} seeds"
            return f"If what was seen is true{assumed}, {size} would show it {chance}."
    return f"If what was seen is true{assumed}, showing it takes many times more problems and seeds (`leadspan power`)."


def _claim(frontier: Frontier, row: Row, target: float) -> tuple[Claim, str] | None:
    """The claim, and what of it is assumed because the runs do not tell it."""
    full = frontier.row(row.reference)
    assert full is not None and row.kept and row.kept.ratio, "a compared row has a reference"
    policy, reference = ([dict(found.correct) for found in side.evaluations] for side in (row, full))
    seeds = max(len(policy), len(reference))
    given = {"claim": target, "retention": row.kept.ratio.value, "accuracy": full.accuracy.value}
    try:
        claim = expected_from(policy, reference, {"claim": target})
        return claim, "" if seeds > 1 else f" and {_seed_sd(claim)}, which one seed does not tell"
    except EvaluationError:
        pass  # the runs hold too little to estimate the spread from
    except SettingsError:
        return None  # they contradict the claim
    try:
        claim = validate(Claim, given, "power")
    except SettingsError:
        return None  # such as an accuracy of 1
    spread = f"{percent(claim.between)} of the variance of answers lies between problems"
    alike = f"the two students' chances have a correlation of {claim.correlation:g} over problems"
    return claim, f" and, as these runs do not tell it, it is assumed that {spread}, {alike} and {_seed_sd(claim)}"


def _seed_sd(claim: Claim) -> str:
    return f"accuracy has a standard deviation of {100 * claim.seed_sd:g} percentage points between seeds"
