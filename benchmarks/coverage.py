"""How often intervals of 95 % hold the truth, in simulated studies of known truth.

Problems differ in difficulty (uniform chances, from 0.3 to 0.9 unless told), the policy's student keeps a share of the
chance on each, 85 % unless told, and training runs shift a student's accuracy by a normal amount, cut off at 0 and 1.
The figures of one run with a spread leave the seeds out, as one run must. The last figures are of choosing: six
policies truly keep 90 %, and a study is wrong that shows "at least 90 %" of any of them.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.record import Figure, Outcome, Spread
from leadspan.statistics.intervals import base_normalised_retention, retention, runs_mean, simultaneous_retention
from leadspan.statistics.resampling import Bootstrap

STUDIES = 600
RESAMPLES = 400
POLICIES = 6
STUDIES_OF_CHOICE = 300


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of problems, samples a problem and runs, and the standard deviation of accuracy over runs."""

    problems: int
    samples: int
    runs: int
    spread: float
    chances: tuple[float, float] = (0.3, 0.9)
    kept: float = 0.85

    def __str__(self) -> str:
        text = f"{self.problems} problems x {self.samples}, {self.runs} runs, spread {self.spread:g}"
        low, high = self.chances
        return text if self.chances == (0.3, 0.9) else f"{text}, chances {low:g}-{high:g}, {self.kept:g} kept"


PLANS = (
    Plan(40, 1, 1, 0),
    Plan(40, 8, 1, 0),
    Plan(200, 1, 1, 0),
    Plan(40, 4, 3, 0.03),
    Plan(40, 4, 5, 0.06),
    Plan(200, 1, 1, 0, (0.98, 1), 0.98),
    Plan(200, 1, 3, 0.02, (0.9, 1), 0.9),
)
ONE_OF_MANY = Plan(40, 4, 1, 0.06)
CHOICES = (Plan(200, 1, 1, 0, kept=0.9), Plan(40, 4, 3, 0.03, kept=0.9), Plan(30, 16, 1, 0, kept=0.9))


def run() -> Outcome:
    figures: list[Figure] = []
    seconds: list[float] = []
    for plan in (*PLANS, ONE_OF_MANY):
        start = perf_counter()
        hits = _hits(plan)
        seconds.append(perf_counter() - start)
        goal = 0.92 if plan is not ONE_OF_MANY else None
        figures += [Figure(f"{name}, {plan}", share, goal, "higher") for name, share in hits.items()]
    for plan in CHOICES:
        figures += _choice(plan)
    return Outcome(
        method=f"share of {STUDIES} simulated studies whose interval holds the truth; {RESAMPLES} resamples; refused "
        f"ratios leave the study out; of choosing, {STUDIES_OF_CHOICE} studies with {POLICIES} policies",
        settings={"studies": STUDIES, "resamples": RESAMPLES, "studies_of_choice": STUDIES_OF_CHOICE},
        sides={"one plan": Spread.of(seconds)},
        figures=figures,
    )


def _hits(plan: Plan) -> dict[str, float]:
    generator = np.random.default_rng(11)
    held: dict[str, list[bool]] = {"accuracy": [], "retention": [], "difference": [], "base-normalised retention": []}
    base_truth, full_truth, policy_truth = _truths(plan)
    for study in range(STUDIES):
        chance = generator.uniform(*plan.chances, (plan.problems, 1))
        base, full, policy = (_student(plan, value, generator) for value in _of_students(plan, chance))
        bootstrap = Bootstrap(num_resamples=RESAMPLES, seed=study)
        mean = runs_mean(full, bootstrap)
        kept = retention(policy, full, bootstrap)
        gain = base_normalised_retention(policy, full, base, bootstrap).ratio
        found = {
            "accuracy": (mean, full_truth),
            "retention": (kept.ratio, policy_truth / full_truth),
            "difference": (kept.difference, policy_truth - full_truth),
            "base-normalised retention": (gain, (policy_truth - base_truth) / (full_truth - base_truth)),
        }
        for name, (interval, truth) in found.items():
            if interval is not None:
                held[name].append(interval.low <= truth <= interval.high)
    return {name: float(np.mean(values)) for name, values in held.items() if len(values) > STUDIES // 2}


def _choice(plan: Plan) -> list[Figure]:
    """How often some of several equal policies is shown to keep what all of them keep; what the first one reports."""
    generator = np.random.default_rng(13)
    bootstrap = Bootstrap()
    _, full_truth, policy_truth = _truths(plan)
    target = policy_truth / full_truth
    alone, together, excess = 0, 0, []
    for _ in range(STUDIES_OF_CHOICE):
        chance = generator.uniform(*plan.chances, (plan.problems, 1))
        full = _student(plan, chance, generator)
        pairs = {str(i): (_student(plan, plan.kept * chance, generator), full) for i in range(POLICIES)}
        ratios = [retention(policy, full, bootstrap).ratio for policy, full in pairs.values()]
        shown = [ratio.value for ratio in ratios if ratio is not None and ratio.low >= target]
        alone += bool(shown)
        excess += [value - target for value in shown[:1]]
        together += any(ratio.low >= target for ratio in simultaneous_retention(pairs, bootstrap).values())
    where = f"{plan.problems} problems x {plan.samples}, {plan.runs} runs, spread {plan.spread:g}"
    return [
        Figure(f"some of {POLICIES} shown, {where}, each by its own interval", alone / STUDIES_OF_CHOICE),
        Figure(
            f"some of {POLICIES} shown, {where}, all intervals together", together / STUDIES_OF_CHOICE, 0.06, "lower"
        ),
        Figure(f"retention of one shown by its own interval less the truth, {where}", float(np.mean(excess or [0]))),
    ]


def _of_students(plan: Plan, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chances of base, uncut student and policy."""
    return chance - 0.3, chance, plan.kept * chance


def _truths(plan: Plan) -> list[float]:
    """Mean accuracies over all problems and runs there could be, from two million of them."""
    generator = np.random.default_rng(1)
    chance = generator.uniform(*plan.chances, 2_000_000)
    shift = generator.normal(0, plan.spread, chance.shape)
    return [float(np.clip(value + shift, 0, 1).mean()) for value in _of_students(plan, chance)]


def _student(plan: Plan, chance: np.ndarray, generator: np.random.Generator) -> list[dict[str, list[float]]]:
    shifted = np.clip(chance + generator.normal(0, plan.spread, (plan.runs, 1, 1)), 0, 1)
    answers = (generator.random((plan.runs, plan.problems, plan.samples)) < shifted).astype(float)
    return [{str(i): row for i, row in enumerate(run)} for run in answers.tolist()]
