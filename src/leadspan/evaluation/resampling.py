"""Bootstrap resampling of scores: the same drawn problems for every model, samples drawn within them, runs above."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadspan.errors import EvaluationError

Scores = Mapping[str, Sequence[float]]
"""Problem id to the scores of its samples, of one training run."""

Runs = Scores | Sequence[Scores]
"""One training run, or several of the same recipe under different seeds."""

_DRAWS_AT_ONCE = 2_000_000
_RUN_STREAM = 1_000_000  # above every place of a model


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn."""

    level: float = 0.95
    """Confidence level, in (0, 1)."""
    num_resamples: int = 4000
    """From seed to seed the ends of a 95 % interval then move by about 1 % of its width."""
    seed: int = 0
    """Seed of the draws, at least 0."""


USUAL = Bootstrap()
"""The bootstrap of all reported intervals."""


@dataclass(frozen=True)
class Model:
    """One model's scores, and its mean score in each resample."""

    tables: list[NDArray[np.float64]]
    """For each training run `[problems, most samples]`, padded with NaN."""
    draws: NDArray[np.float64]
    """`[resamples]`."""

    @property
    def mean(self) -> float:
        """Mean over runs of the mean over problems of the mean over samples."""
        return float(np.mean([np.nanmean(table, axis=1).mean() for table in self.tables]))

    @property
    def num_problems(self) -> int:
        """Problems."""
        return len(self.tables[0])


def runs_of(scores: Runs) -> list[Scores]:
    """The runs, one or several, as a list."""
    return [scores] if isinstance(scores, Mapping) else list(scores)


def resample(models: Mapping[str, Runs], bootstrap: Bootstrap) -> list[Model]:
    """The models with their means under the same resampled problems.

    A model's draws depend on its place and its scores only: what the first one gets, it also gets alone. With S > 1
    training runs, whose means under the drawn problems are m_s, a draw is

        mean(m) + t * sum_s g_s * (m_s - mean(m)) / sqrt(S * (S - 1)),    t = sqrt((S - 1) / chi2_{S-1}),

    with standard normal g: where the runs differ much and the problems little, that is Student's t interval of S
    runs, which drawing 3 or 5 runs with replacement would fall far short of. Models with equally many runs share g
    and t: their n-th runs are taken as a pair (give them in the order of their seeds).

    **Source**: multiplier (wild) bootstrap, Wu, Ann. Stat. 14 (1986), 1261-1295, with Student's t (1908) for the
    unknown variance of few runs.

    Args:
        models: Scores by the model's name.
        bootstrap: Number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or a model has no run, no problem, a problem without samples, or a score
            outside [0, 1].
    """
    named = {name: runs_of(scores) for name, scores in models.items()}
    (first_name, first_runs), *_ = named.items()
    first = next(iter(first_runs), {})
    for name, runs in named.items():
        if not runs:
            raise EvaluationError(f"{name}: there are no runs; give the scores of at least one")
        for number, scores in enumerate(runs):
            place = name if number == 0 else f"{name}, run {number + 1}"
            _require_same_problems(first_name, first, place, scores)
    uniform = np.random.default_rng([bootstrap.seed, 0]).random((bootstrap.num_resamples, len(first)))
    problems = (uniform * len(first)).astype(np.int64)
    resampled = []
    for place, (name, runs) in enumerate(named.items()):
        tables = [_score_table(name, {problem: scores[problem] for problem in first}) for scores in runs]
        generator = np.random.default_rng([bootstrap.seed, place + 1])
        means = np.stack([_resampled_means(table, problems, generator) for table in tables])
        resampled.append(Model(tables, _with_run_spread(means, bootstrap)))
    return resampled


def _with_run_spread(means: NDArray[np.float64], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """Draws of the mean over runs, from the means of each run `[runs, resamples]`."""
    centre, num_runs = means.mean(axis=0), len(means)
    if num_runs == 1:
        return centre
    generator = np.random.default_rng([bootstrap.seed, _RUN_STREAM, num_runs])
    multipliers = generator.standard_normal(means.shape)
    scale = np.sqrt((num_runs - 1) / generator.chisquare(num_runs - 1, means.shape[1]))
    return centre + scale * (multipliers * (means - centre)).sum(axis=0) / np.sqrt(num_runs * (num_runs - 1))


def _resampled_means(
    table: NDArray[np.float64], problems: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """The mean of each row of `problems`, with samples drawn within; in chunks, to bound memory."""
    is_sample = ~np.isnan(table)
    num_samples = is_sample.sum(axis=1)
    means = []
    for chunk in np.array_split(problems, 1 + problems.size * table.shape[1] // _DRAWS_AT_ONCE):
        uniform = generator.random((*chunk.shape, table.shape[1]))
        picked = (uniform * num_samples[chunk][..., None]).astype(np.int64)
        scores = np.where(is_sample[chunk], table[chunk[..., None], picked], 0.0)
        means.append((scores.sum(axis=2) / num_samples[chunk]).mean(axis=1))
    return np.concatenate(means)


def _score_table(name: str, scores: Scores) -> NDArray[np.float64]:
    if not scores:
        raise EvaluationError(f"{name}: there are no problems; a mean needs at least one")
    table = np.full((len(scores), max(1, *map(len, scores.values()))), np.nan)
    for row, (problem, samples) in zip(table, scores.items(), strict=True):
        if len(samples) == 0 or not all(0 <= score <= 1 for score in samples):
            shown = f"{name}, problem {problem!r}: scores are {list(samples)[:8]}"
            raise EvaluationError(f"{shown}; give at least one sample, each with a score from 0 to 1")
        row[: len(samples)] = samples
    return table


def _require_same_problems(first_name: str, first: Scores, name: str, scores: Scores) -> None:
    missing, extra = sorted(first.keys() - scores.keys()), sorted(scores.keys() - first.keys())
    if missing or extra:
        raise EvaluationError(
            f"{first_name} and {name} were scored on different problems: {name} lacks {len(missing)} "
            f"{missing[:3]} and has {len(extra)} more {extra[:3]}; evaluate both on the same problems"
        )
