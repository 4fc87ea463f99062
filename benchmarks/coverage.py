"""How often intervals of 95 % hold the truth, in simulated studies of known truth.

Problems differ in difficulty (uniform chances from 0.3 to 0.9), the policy's student keeps 85 % of the chance on each,
and training runs shift a student's accuracy by a normal amount. The last figures leave the seeds out, as one run must.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.record import Figure, Outcome, Spread
from leadspan.evaluation.resampling import Bootstrap
from leadspan.evaluation.statistics import base_normalised_retention, retention, runs_mean

STUDIES = 600
RESAMPLES = 400
KEPT = 0.85
FULL = 0.6


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of problems, samples a problem and runs, and the standard deviation of accuracy over runs."""

    problems: int
    samples: int
    runs: int
    spread: float

    def __str__(self) -> str:
        return f"{self.problems} problems x {self.samples}, {self.runs} runs, spread {self.spread:g}"


PLANS = (Plan(40, 1, 1, 0), Plan(40, 8, 1, 0), Plan(200, 1, 1, 0), Plan(40, 4, 3, 0.03), Plan(40, 4, 5, 0.06))
ONE_OF_MANY = Plan(40, 4, 1, 0.06)


def run() -> Outcome:
    figures: list[Figure] = []
    seconds: list[float] = []
    for plan in (*PLANS, ONE_OF_MANY):
        start = perf_counter()
        hits = _hits(plan)
        seconds.append(perf_counter() - start)
        goal = 0.92 if plan is not ONE_OF_MANY else None
        figures += [Figure(f"{name}, {plan}", share, goal, "higher") for name, share in hits.items()]
    return Outcome(
        method=f"share of {STUDIES} simulated studies whose interval holds the truth; {RESAMPLES} resamples; refused "
        "ratios leave the study out",
        settings={"studies": STUDIES, "resamples": RESAMPLES, "kept": KEPT, "accuracy": FULL},
        sides={"one plan": Spread.of(seconds)},
        figures=figures,
    )


def _hits(plan: Plan) -> dict[str, float]:
    generator = np.random.default_rng(11)
    held: dict[str, list[bool]] = {"accuracy": [], "retention": [], "base-normalised retention": []}
    for study in range(STUDIES):
        chance = generator.uniform(0.3, 0.9, (plan.problems, 1))
        base, full, policy = (_student(plan, value, generator) for value in (chance - 0.3, chance, KEPT * chance))
        bootstrap = Bootstrap(num_resamples=RESAMPLES, seed=study)
        mean = runs_mean(full, bootstrap)
        ratio = retention(policy, full, bootstrap).ratio
        gain = base_normalised_retention(policy, full, base, bootstrap).ratio
        found = {"accuracy": (mean, FULL), "retention": (ratio, KEPT), "base-normalised retention": (gain, 0.7)}
        for name, (interval, truth) in found.items():
            if interval is not None:
                held[name].append(interval.low <= truth <= interval.high)
    return {name: float(np.mean(values)) for name, values in held.items() if len(values) > STUDIES // 2}


def _student(plan: Plan, chance: np.ndarray, generator: np.random.Generator) -> list[dict[str, list[float]]]:
    shifted = np.clip(chance + generator.normal(0, plan.spread, (plan.runs, 1, 1)), 0, 1)
    answers = (generator.random((plan.runs, plan.problems, plan.samples)) < shifted).astype(float)
    return [{str(i): row for i, row in enumerate(run)} for run in answers.tolist()]
