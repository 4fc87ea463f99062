"""Bootstrap resampling of scores: the same drawn problems for every model, samples drawn within them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadspan.errors import EvaluationError

Scores = Mapping[str, Sequence[float]]
"""Problem id to the scores of its samples."""

_DRAWS_AT_ONCE = 2_000_000


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

    table: NDArray[np.float64]
    """`[problems, most samples]`, padded with NaN."""
    draws: NDArray[np.float64]
    """`[resamples]`."""

    @property
    def mean(self) -> float:
        """Mean over problems of the mean over samples."""
        return float(np.nanmean(self.table, axis=1).mean())


def resample(models: Mapping[str, Scores], bootstrap: Bootstrap) -> list[Model]:
    """The models with their means under the same resampled problems.

    A model's draws depend on its place and its scores only: what the first one gets, it also gets alone.

    Args:
        models: Scores by the model's name.
        bootstrap: Number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or a model has no problem, a problem without samples, or a score
            outside [0, 1].
    """
    (first_name, first), *others = models.items()
    for name, scores in others:
        _require_same_problems(first_name, first, name, scores)
    uniform = np.random.default_rng([bootstrap.seed, 0]).random((bootstrap.num_resamples, len(first)))
    problems = (uniform * len(first)).astype(np.int64)
    resampled = []
    for place, (name, scores) in enumerate(models.items()):
        table = _score_table(name, {problem: scores[problem] for problem in first})
        generator = np.random.default_rng([bootstrap.seed, place + 1])
        resampled.append(Model(table, _resampled_means(table, problems, generator)))
    return resampled


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
