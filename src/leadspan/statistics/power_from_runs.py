"""Estimates of the spread that a claim is planned with, from finished runs, by the method of moments (see `power`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from leadspan.errors import EvaluationError
from leadspan.settings import validate
from leadspan.statistics.power import Claim
from leadspan.statistics.resampling import Runs, Scores, runs_of, score_tables


def expected_from(policy: Runs, full: Runs, stated: Mapping[str, float]) -> Claim:
    """A claim whose accuracy, retention, spread, correlation and seed spread are estimated from finished runs.

    Moments: a problem's answers, pooled over runs, give its chance and, unbiased, the variance of a single answer;
    that variance over the number of answers is taken off the variance of the chances. `seed_sd` keeps its default where
    every student has a single run. The estimates are as good as the runs are many.

    Args:
        policy: Scores of the policy's student, one run or several.
        full: Scores of the full student on the same problems.
        stated: Fields of the claim that are stated; they take precedence.

    Raises:
        EvaluationError: The problems differ, a problem has fewer than two answers, or the runs contradict the claim.
    """
    both = {"policy": policy, "full": full}
    score_tables(both)  # refuses runs on different problems
    # The policy's chances in the order of the full student's: runs may list the same problems in different orders.
    sides = [_moments(name, runs_of(runs)) for name, runs in both.items()]
    of_policy, of_full = (np.array([side.chances[problem] for problem in sides[1].chances]) for side in sides)
    spread = sqrt(sides[0].between * sides[1].between)
    correlation = float(np.cov(of_policy, of_full)[0, 1]) / spread if spread > 0 else 0.0
    seeds = [side.seed_variance for side in sides if side.seed_variance is not None]
    values = {
        "retention": float(of_policy.mean() / of_full.mean()) if of_full.mean() > 0 else inf,
        "accuracy": float(of_full.mean()),
        "between": float(np.mean([side.between / (side.between + side.within) for side in sides])),
        "correlation": float(np.clip(correlation, -1, 1)),
        **({"seed_sd": sqrt(float(np.mean(seeds)))} if seeds else {}),
        **stated,
    }
    return validate(Claim, values, "power: what the runs say")


@dataclass(frozen=True, slots=True)
class _Moments:
    chances: dict[str, float]
    between: float
    within: float
    seed_variance: float | None


def _moments(name: str, runs: Sequence[Scores]) -> _Moments:
    pooled = {problem: np.concatenate([run[problem] for run in runs]) for problem in runs[0]}
    num_answers = np.array([len(answers) for answers in pooled.values()])
    if len(pooled) < 2 or num_answers.min() < 2:
        raise EvaluationError(
            f"power: {name} has {len(pooled)} problems with at least {num_answers.min()} answers; estimates need two "
            "problems and two answers to each, from several samples or several seeds"
        )
    within = np.array([answers.var(ddof=1) for answers in pooled.values()])
    chances = np.array([answers.mean() for answers in pooled.values()])
    # Chances vary by the noise of their own answers too; what is left may be below 0 by chance.
    between = max(0.0, float(chances.var(ddof=1) - (within / num_answers).mean()))
    if between + within.mean() == 0:
        raise EvaluationError(f"power: {name} answers every problem alike, so its runs show no spread to plan with")
    seeds = None
    if len(runs) > 1:
        means = [np.mean([np.mean(samples) for samples in run.values()]) for run in runs]
        # The runs' means differ by the noise of their answers, even where seeds make no difference.
        noise = within.mean() / (num_answers.mean() / len(runs)) / len(pooled)
        seeds = max(0.0, float(np.var(means, ddof=1) - noise))
    return _Moments(dict(zip(pooled, chances.tolist(), strict=True)), between, float(within.mean()), seeds)
