"""Resampling of scores: the bootstrap draws behind every interval, and flipped signs for the test of a difference.

In the bootstrap every model has the same drawn problems, their samples with them, and runs as a level above. Resamples
of few problems are stretched, see `drawn_means`: without that, intervals of 95 % over 8 to 30 problems held the truth
in 87 to 93 % of simulated studies.

A drawn problem brings all its samples. Its mean then varies by how problems differ and by the noise of its samples,
which is what the mean of all problems varies by; to draw the samples again within the drawn problems would add their
noise a second time (intervals of 95 % then held the truth in 99.5 % of simulated studies, see docs/log.md).

**Source**: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8, the second of its two
ways to resample at two levels: groups with replacement, within a group without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leadspan.errors import EvaluationError

Scores = Mapping[str, Sequence[float]]
"""Problem id to the scores of its samples, of one training run."""

Runs = Scores | Sequence[Scores]
"""One training run, or several of the same recipe under different seeds."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn."""

    level: float = 0.95  # confidence level, in (0, 1)
    num_resamples: int = 4000  # from seed to seed the ends of a 95 % interval then move by about 1 % of its width
    seed: int = 0  # of the draws, at least 0


USUAL = Bootstrap()
"""The bootstrap of all reported intervals."""


@dataclass(frozen=True)
class Model:
    """One model's scores, and its mean score in each resample."""

    problem_means: NDArray[np.float64]  # `[problems]`, means over runs of the means over samples
    draws: NDArray[np.float64]  # `[resamples]`; with few runs some lie beyond 0 or 1, see `resample`
    num_runs: int  # training runs that the scores are from

    @property
    def mean(self) -> float:
        """Mean over runs of the mean over problems of the mean over samples."""
        return float(self.problem_means.mean())


def runs_of(scores: Runs) -> list[Scores]:
    """The runs, one or several, as a list."""
    return [scores] if isinstance(scores, Mapping) else list(scores)


def resample(models: Mapping[str, Runs], bootstrap: Bootstrap) -> list[Model]:
    """The models with their means under the same resampled problems.

    A model's draws depend on its own scores only: what it gets among others, it also gets alone. With S > 1 training
    runs, whose means under the drawn problems are m_s, a draw is

        mean(m) + t * k * sum_s g_s * (m_s - mean(m)) / sqrt(S * (S - 1)),    t = sqrt((S - 1) / chi2_{S-1}),

    with standard normal g: Student's t interval of S runs, which drawing 3 or 5 runs with replacement would fall far
    short of. Runs also differ because each has samples of its own, and that is in the problems' spread already; so
    k^2 = max(0, 1 - r / P / s^2), with s^2 the variance of the runs' means and r the residual mean square of the table
    of runs and problems. Models with equally many runs share g and t: their n-th runs are taken as a pair (give them in
    the order of their seeds). With few runs t is often large and carries draws beyond 0 or 1. They stay as they are: in
    the difference of two models the excess cancels where it is common to both; cut off at 1 it would hide what they
    differ by. The ends of intervals are kept within what an accuracy can be.

    **Source**: multiplier (wild) bootstrap, Wu, Ann. Stat. 14 (1986), 1261-1295; Student's t for the unknown variance
    of few runs; variance components of a two-way layout, Searle, Casella and McCulloch, Variance Components (1992),
    section 4.3; Owen, Ann. Appl. Stat. 1 (2007), 386-411, for what resampling both ways counts twice.

    Args:
        models: Scores by the model's name.
        bootstrap: Number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or a model has no run, no problem, a problem without samples, or a score
            outside [0, 1].
    """
    models_drawn: list[Model] = []
    for means in sample_means(models).values():
        drawn = np.stack([drawn_means(run, bootstrap) for run in means])
        num_runs, draws = len(means), drawn.mean(axis=0)
        if num_runs > 1:
            # Seeded by the number of runs, so that models with equally many share g and t and stay paired.
            generator = np.random.default_rng([bootstrap.seed, 1, num_runs])
            multipliers = generator.standard_normal(drawn.shape)
            scale = np.sqrt((num_runs - 1) / generator.chisquare(num_runs - 1, drawn.shape[1]))
            spread = (multipliers * (drawn - draws)).sum(axis=0) / np.sqrt(num_runs * (num_runs - 1))
            of_runs, of_problems = means.mean(axis=1, keepdims=True), means.mean(axis=0, keepdims=True)
            variance, num_problems = float(of_runs.var(ddof=1)), means.shape[1]
            share = 1.0  # k
            # Without a spread there is nothing to share out; one problem leaves no residual to estimate the noise from.
            if variance > 0 and num_problems > 1:
                residual = float(((means - of_runs - of_problems + means.mean()) ** 2).sum())
                noise = residual / ((num_runs - 1) * (num_problems - 1)) / num_problems
                share = max(0.0, 1 - noise / variance) ** 0.5
            draws = draws + scale * share * spread
        models_drawn.append(Model(means.mean(axis=0), draws, num_runs))
    return models_drawn


def sample_means(models: Mapping[str, Runs]) -> dict[str, NDArray[np.float64]]:
    """The means over samples, `[runs, problems]` for each model, problems in one order.

    Raises:
        EvaluationError: As `resample`.
    """
    named = {name: runs_of(scores) for name, scores in models.items()}
    (first_name, first_runs), *_ = named.items()
    first = next(iter(first_runs), {})
    for name, runs in named.items():
        if not runs:
            raise EvaluationError(f"{name}: there are no runs; give the scores of at least one")
        for number, scores in enumerate(runs):
            missing, extra = sorted(first.keys() - scores.keys()), sorted(scores.keys() - first.keys())
            if missing or extra:
                run_name = name if number == 0 else f"{name}, run {number + 1}"
                raise EvaluationError(
                    f"{first_name} and {run_name} were scored on different problems: {run_name} lacks {len(missing)} "
                    f"{missing[:3]} and has {len(extra)} more {extra[:3]}; evaluate both on the same problems"
                )
    # Problems in the order of the first run: draw i of every model then counts the same problems.
    means: dict[str, list[NDArray[np.float64]]] = {name: [] for name in named}
    for name, scores in ((name, scores) for name, runs in named.items() for scores in runs):
        if not first:
            raise EvaluationError(f"{name}: there are no problems; a mean needs at least one")
        table = np.full((len(first), max(1, *map(len, scores.values()))), np.nan)
        for row, problem in zip(table, first, strict=True):
            samples = scores[problem]
            if len(samples) == 0 or not all(0 <= score <= 1 for score in samples):
                shown = f"{name}, problem {problem!r}: scores are {list(samples)[:8]}"
                raise EvaluationError(f"{shown}; give at least one sample, each with a score from 0 to 1")
            row[: len(samples)] = samples
        means[name].append(np.nanmean(table, axis=1))
    return {name: np.stack(of_runs) for name, of_runs in means.items()}


def drawn_means(values: NDArray[np.float64], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """The mean of one value a problem, `[problems]`, in each resample: `[resamples]`.

    Resamples of few problems spread less than the means of so many problems do, and normally where Student's t is due.
    So the distance of each from the mean m of all P problems is stretched: m + (m_drawn - m) sqrt(P / chi2_{P-1}), with
    a chi2 of its own for each resample, the same for every model.

    **Source**: Hesterberg, Am. Stat. 69 (2015), 371-386, who widens percentiles by the same factor.
    """
    counts, stretches = _counts(len(values), bootstrap.num_resamples, bootstrap.seed)
    # In blocks, because the product makes a copy of the counts as floats, four times as large.
    blocks = [counts[start : start + 256] @ values for start in range(0, len(counts), 256)]
    mean = values.mean()
    return mean + (np.concatenate(blocks) / len(values) - mean) * stretches


@lru_cache(maxsize=2)
def _counts(num_problems: int, num_resamples: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """How often each problem is drawn in each resample, `[resamples, problems]`, and how far each is stretched.

    The same for every model of a comparison, and for every comparison on so many problems, hence cached.
    """
    # The second number of the seed separates these draws from those of the runs in `resample`.
    generator = np.random.default_rng([seed, 0])
    counts = np.empty((num_resamples, num_problems), np.uint16)  # two bytes: 4,000 x 10,000 take 80 MB
    for row in counts:
        drawn = (generator.random(num_problems) * num_problems).astype(np.int64)
        row[:] = np.bincount(drawn, minlength=num_problems)
    stretches = np.ones(num_resamples)
    if num_problems > 1:
        generator = np.random.default_rng([seed, 2, num_problems])
        stretches = np.sqrt(num_problems / generator.chisquare(num_problems - 1, num_resamples))
    counts.flags.writeable = stretches.flags.writeable = False  # all callers share the cached arrays
    return counts, stretches


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Outcome of a sign-flip test."""

    p_value: float  # two-sided probability of a mean difference at least as large if signs were arbitrary
    difference: float  # mean difference, first minus second
    num_flips: int  # sign patterns that were counted
    is_exact: bool  # whether every pattern was counted


def sign_flip_test(first: Runs, second: Runs, num_flips: int = 20_000) -> SignFlip:
    """Whether two models differ on the same problems, without any assumption on the scores' distribution.

    Under the null the difference d_p of a problem (means over runs and samples) is as likely d_p as -d_p. The p-value
    is the share of sign patterns whose mean difference is, in absolute value, at least the one seen; with random
    patterns (1 + hits) / (1 + patterns), so that it is never 0. All patterns are counted where there are no more than
    `num_flips`: by default, where 14 problems or fewer differ. The test is about these trained models: variation from
    seed to seed is not part of it.

    **Source**: Fisher, The Design of Experiments (1935), section 21; Phipson and Smyth, Stat. Appl. Genet. Mol. Biol.
    9 (2010), article 39, for the added one.

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    means = sample_means({"first": first, "second": second})
    gaps = means["first"].mean(axis=0) - means["second"].mean(axis=0)
    # Problems without a difference have the same sum under either sign.
    differing = gaps[np.abs(gaps) > 1e-12]
    if len(differing) < 2:  # either sign gives the same difference
        return SignFlip(1.0, float(gaps.mean()), 2 ** len(differing), True)
    from scipy.stats import permutation_test  # half a second to import

    test = permutation_test(
        (differing,),
        # Rounded: the pattern that was seen must count as a hit, whatever the order of summation.
        lambda values, axis: np.abs(np.round(values.sum(axis=axis), 9)),
        permutation_type="samples",  # of one sample: the signs of its values
        n_resamples=num_flips,
        batch=1000,  # bounds the memory
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    number = len(test.null_distribution)
    return SignFlip(float(test.pvalue), float(gaps.mean()), number, number == 2 ** len(differing))
