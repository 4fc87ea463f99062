"""From graded samples to the figures of a result: accuracy, pass@k, maj@k, how samples ended, how long they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from leadspan.answers.equality import normalise
from leadspan.answers.grading import Verdict
from leadspan.evaluation.result import EvalResult, Marks
from leadspan.evaluation.samples import StoredSample
from leadspan.evaluation.settings import SamplingSettings, TaskSettings
from leadspan.statistics.intervals import Interval, bootstrap_mean, bootstrap_share

MAJORITY_DRAWS = 500
"""Subsets of the samples from which maj@k is estimated, where k is less than their number."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A sample with its verdict.

    Attributes:
        stored: The sample.
        verdict: What became of its answer.
        has_box: Whether a box with content stands behind closed thinking, finished or not.
    """

    stored: StoredSample
    verdict: Verdict
    has_box: bool

    @property
    def is_right(self) -> bool:
        """Whether it is strictly right."""
        return self.verdict.strict == "right"


def evaluation_result(
    task: TaskSettings,
    problems: Sequence[Sequence[Graded]],
    sampling: SamplingSettings,
    model: str,
    weights_hash: str,
) -> EvalResult:
    """All figures of one model on one task, from the samples of each problem."""
    flat = [graded for drawn in problems for graded in drawn]
    lengths = np.array([graded.stored.drawn.num_tokens for graded in flat])
    correct: Marks = {drawn[0].stored.problem_id: [1 if g.is_right else 0 for g in drawn] for drawn in problems}
    ends = [graded.stored.drawn.finish_reason for graded in flat]
    terminated: Marks = {
        drawn[0].stored.problem_id: [1 if g.stored.drawn.finish_reason == "stop" else 0 for g in drawn]
        for drawn in problems
    }
    finished = [sum(graded.stored.is_finished for graded in drawn) for drawn in problems]
    return EvalResult(
        task=task.name,
        model=model,
        weights_hash=weights_hash,
        num_problems=len(problems),
        samples_per_problem=len(problems[0]),
        sampling=sampling.model_dump(mode="json"),
        accuracy_strict=bootstrap_mean(list(correct.values())),
        accuracy_flexible=bootstrap_mean([[int(g.verdict.flexible == "right") for g in drawn] for drawn in problems]),
        accuracy_finished=bootstrap_share([sum(scores) for scores in correct.values()], finished),
        pass_at=pass_at(list(correct.values())),
        majority_at=majority_at(problems),
        termination_rate=bootstrap_mean(list(terminated.values())),
        cap_hit_rate=_share([end == "length" for end in ends]),
        thinking_closed_rate=_share([graded.stored.thinking_closed for graded in flat]),
        loop_rate=_share([graded.stored.drawn.loops for graded in flat]),
        no_box_rate=None if task.grader == "exact" else _share([not graded.has_box for graded in flat]),
        tokens_mean=float(lengths.mean()),
        tokens_p50=float(np.percentile(lengths, 50)),
        tokens_p95=float(np.percentile(lengths, 95)),
        outcomes=dict(Counter(graded.verdict.strict for graded in flat)),
        correct=correct,
        terminated=terminated,
    )


def pass_at(correct: Sequence[Sequence[int]]) -> dict[str, Interval]:
    """pass@k for k = 1, 2, 4, ... and the number n of samples; empty where n is 1.

    The chance that k samples drawn without replacement hold a right one: the mean over problems of
    1 - C(n - c, k) / C(n, k), with c right samples of n. Intervals are over problems; drawing samples again would bias
    them, since a drawn-twice sample shows nothing new.

    **Source**: Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, equation 1.
    """
    counts = [(len(scores), sum(scores)) for scores in correct]
    return {
        str(k): bootstrap_mean([[1 - comb(n - right, k) / comb(n, k)] for n, right in counts])
        for k in _numbers(counts[0][0])
    }


def majority_at(problems: Sequence[Sequence[Graded]]) -> dict[str, Interval]:
    """maj@k for k = 2, 4, ... and the number of samples: how often the answer that most of k samples give is right.

    Answers count as the same when `normalise` writes them alike; the gold has no part in that. Samples without a strict
    answer have no vote, a tie counts by the share of the tied answers that are right, and k samples without any vote
    are wrong. For k below the number of samples it is the mean over `MAJORITY_DRAWS` subsets drawn from a fixed seed.
    Intervals are over problems.

    **Source**: Wang et al., Self-Consistency, arXiv 2203.11171, section 2.
    """
    votes: list[tuple[np.ndarray, np.ndarray]] = []
    for drawn in problems:
        # The class of each sample's answer, -1 without one; and how right each class is.
        voting = [g.verdict.extracted if g.stored.is_finished else None for g in drawn]
        answers = [normalise(answer) if answer else None for answer in voting]
        class_of = {answer: number for number, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
        classes = np.array([-1 if answer is None else class_of[answer] for answer in answers])
        is_right = np.array([graded.is_right for graded in drawn], dtype=float)
        votes.append((classes, np.array([is_right[classes == number].mean() for number in range(len(class_of))])))
    return {
        str(k): bootstrap_mean([[_majority(classes, right, k)] for classes, right in votes])
        for k in _numbers(len(problems[0]))
        if k > 1
    }


def _numbers(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which comes last; none where there is one sample."""
    # Powers of two are evenly spaced on the logarithmic axis of pass@k plots.
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []


def _majority(classes: np.ndarray, right: np.ndarray, k: int) -> float:
    if len(right) == 0:
        return 0.0
    # With all samples there is one subset, and nothing is drawn.
    subsets = classes[None]
    if k < len(classes):
        # Sorting random numbers gives a permutation per row; its first k entries are a subset without repeats.
        order = np.random.default_rng(0).random((MAJORITY_DRAWS, len(classes))).argsort(axis=1)
        subsets = classes[order[:, :k]]
    counts = (subsets[:, :, None] == np.arange(len(right))).sum(axis=1)
    most = counts.max(axis=1, keepdims=True)
    wins = (counts == most) & (most > 0)
    # Tied classes share the outcome; a subset without any vote has no winner and scores 0.
    scores = (wins * right).sum(axis=1) / np.maximum(wins.sum(axis=1), 1)
    return float(scores.mean())


def _share(flags: Sequence[bool]) -> float:
    return float(np.mean(flags))
