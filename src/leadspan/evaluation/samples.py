"""Drawn samples: their file, written as they come and read again after an interruption; and the figures of a result.

The file has one JSON object per line. Each names the weights it was drawn from and a hash of everything else that
decides what is drawn, so that nothing is graded under another model's name or other settings. Each has a checksum, so
that a damaged line is drawn again.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from statistics import fmean

import numpy as np

from leadspan.answers.equality import chosen_letter, normalise
from leadspan.answers.grading import Verdict
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult, Marks
from leadspan.evaluation.sampling import Request, Sample
from leadspan.evaluation.settings import SamplingSettings, TaskSettings
from leadspan.files import checked_line, with_checksum, write_atomically
from leadspan.statistics.intervals import Interval, bootstrap_mean, bootstrap_share

logger = logging.getLogger(__name__)

Key = tuple[str, int]
"""Problem id and sample number."""
MAJORITY_DRAWS = 500
"""Subsets of the samples from which maj@k is estimated, where k is less than their number."""


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample, as stored in the file.

    Attributes:
        problem_id: Which problem.
        sample: Number of the sample, from 0.
        prompt: Prompt text with the generation header.
        drawn: The generated text, its tokens and how it ended.
        thinking_closed: Whether thinking was closed, or never opened.
        seconds: Its share of the wall time of its batch.
    """

    problem_id: str
    sample: int
    prompt: str
    drawn: Sample
    thinking_closed: bool
    seconds: float

    @property
    def key(self) -> Key:
        """Problem id and sample number."""
        return self.problem_id, self.sample

    @property
    def is_finished(self) -> bool:
        """Whether it ended its turn with thinking closed: whether it is an answer."""
        return self.drawn.finish_reason == "stop" and self.thinking_closed


@dataclass(frozen=True, slots=True)
class SampleFile:
    """The samples of one model on one task.

    Attributes:
        path: The file.
        weights_hash: Hash of the weights that draw.
        drawn_with: Hash of sampling settings, engine, number type, stops.
        golds: Reference answers by problem id, which are stored with the samples.
    """

    path: Path
    weights_hash: str
    drawn_with: str
    golds: Mapping[str, str]

    def read(self, requests: Mapping[Key, Request]) -> dict[Key, StoredSample]:
        """The samples that an interrupted evaluation has drawn.

        A half-written last line is cut off the file; damaged lines are moved to another file, with a warning.

        Raises:
            EvaluationError: A line belongs to other weights, settings, prompts or problems.
        """
        if not self.path.exists():
            return {}
        samples: dict[Key, StoredSample] = {}
        # `rest` has no line end: the process died while writing it.
        *lines, rest = self.path.read_bytes().split(b"\n")
        rows = [checked_line(line) for line in lines]
        damaged = [number for number, row in enumerate(rows, 1) if row is None]
        for number, row in enumerate(rows, 1):
            if row is None:
                continue
            try:
                drawn = Sample(row["text"], row["num_tokens"], row["finish_reason"], row["loops"])
                named = row["problem_id"], row["sample"], row["prompt"]
                stored = StoredSample(*named, drawn, row["thinking_closed"], row["seconds"])
                weights, drawn_with = row["weights_hash"], row["drawn_with"]
            except (KeyError, TypeError):
                raise self._refusal(number, "it is no sample of this version") from None
            if weights != self.weights_hash:
                raise self._refusal(number, f"it was drawn from weights {weights}, not from {self.weights_hash}")
            if drawn_with != self.drawn_with:
                raise self._refusal(number, "it was drawn with other sampling settings, stop tokens or another engine")
            request = requests.get(stored.key)
            if request is None and (stored.problem_id, 0) in requests:
                many = f"it is sample {stored.sample + 1} of its problem, of which fewer are to be drawn now"
                raise self._refusal(number, f"{many} (samples_per_problem)")
            if request is None or request.prompt != stored.prompt:
                raise self._refusal(number, f"it belongs to another task or prompt (problem {stored.problem_id})")
            samples[stored.key] = stored
        if damaged:
            aside = self.path.with_suffix(".jsonl.damaged")
            logger.warning(
                "%s: damaged in %d lines, first line %d; they are moved to %s and drawn again",
                self.path,
                len(damaged),
                damaged[0],
                aside.name,
            )
            write_atomically(aside, b"".join(lines[number - 1] + b"\n" for number in damaged))
        if damaged or rest:
            intact = (line + b"\n" for line, row in zip(lines, rows, strict=True) if row is not None)
            write_atomically(self.path, b"".join(intact))
        return samples

    def append(self, samples: Iterable[StoredSample]) -> None:
        """Append samples to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(self._line, samples))

    def write_graded(self, samples: Iterable[StoredSample], verdicts: Iterable[Verdict]) -> None:
        """Rewrite the file with the same samples in order, and their verdicts."""
        write_atomically(self.path, "".join(self._line(*graded) for graded in zip(samples, verdicts, strict=True)))

    def _line(self, stored: StoredSample, verdict: Verdict | None = None) -> str:
        record = {
            "problem_id": stored.problem_id,
            "sample": stored.sample,
            "weights_hash": self.weights_hash,
            "drawn_with": self.drawn_with,
            "prompt": stored.prompt,
            **asdict(stored.drawn),
            "thinking_closed": stored.thinking_closed,
            "seconds": round(stored.seconds, 6),
            "gold": self.golds[stored.problem_id],
            **({} if verdict is None else asdict(verdict)),
        }
        return with_checksum(record)

    def _refusal(self, number: int, why: str) -> EvaluationError:
        return EvaluationError(
            f"{self.path}:{number}: {why}; resume with the model, task and settings it was begun with, or give another "
            "output directory"
        )


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


def evaluation_result(
    task: TaskSettings,
    problems: Sequence[Sequence[Graded]],
    sampling: SamplingSettings,
    model: str,
    weights_hash: str,
) -> EvalResult:
    """All figures of one model on one task, from the samples of each problem."""
    flat = [graded for drawn in problems for graded in drawn]
    drawings = [graded.stored.drawn for graded in flat]
    lengths = np.array([drawing.num_tokens for drawing in drawings])
    correct: Marks = {
        drawn[0].stored.problem_id: [1 if g.verdict.strict == "right" else 0 for g in drawn] for drawn in problems
    }
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
        majority_at=majority_at(problems, has_choices=task.grader == "choice"),
        termination_rate=bootstrap_mean(list(terminated.values())),
        cap_hit_rate=fmean(drawing.finish_reason == "length" for drawing in drawings),
        thinking_closed_rate=fmean(graded.stored.thinking_closed for graded in flat),
        loop_rate=fmean(drawing.loops for drawing in drawings),
        no_box_rate=None if task.grader == "exact" else fmean(not graded.has_box for graded in flat),
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


def majority_at(problems: Sequence[Sequence[Graded]], has_choices: bool = False) -> dict[str, Interval]:
    """maj@k for k = 2, 4, ... and the number of samples: how often the answer that most of k samples give is right.

    Answers count as the same when `normalise` writes them alike, or where there are choices when they name the same
    letter; the gold has no part in that. Samples without a strict
    answer have no vote, a tie counts by the share of the tied answers that are right, and k samples without any vote
    are wrong. For k below the number of samples it is the mean over `MAJORITY_DRAWS` subsets drawn from a fixed seed.
    Intervals are over problems.

    **Source**: Wang et al., Self-Consistency, arXiv 2203.11171, section 2.
    """
    numbers = [k for k in _numbers(len(problems[0])) if k > 1]
    scores: dict[int, list[list[float]]] = {k: [] for k in numbers}
    for drawn in problems:
        # The class of each sample's answer, -1 without one; and how right each class is.
        voting = [g.verdict.extracted if g.stored.is_finished else None for g in drawn]
        letters = [chosen_letter(answer) if answer and has_choices else None for answer in voting]
        answers = [
            letter or (normalise(answer) if answer else None) for letter, answer in zip(letters, voting, strict=True)
        ]
        class_of = {answer: number for number, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
        classes = np.array([-1 if answer is None else class_of[answer] for answer in answers])
        is_right = np.array([graded.verdict.strict == "right" for graded in drawn], dtype=float)
        right = np.array([is_right[classes == number].mean() for number in range(len(class_of))])
        for k in numbers:
            # With all samples there is one subset, and nothing is drawn.
            subsets = classes[None]
            if k < len(classes):
                # Sorting random numbers gives a permutation per row; its first k entries are a subset without repeats.
                order = np.random.default_rng(0).random((MAJORITY_DRAWS, len(classes))).argsort(axis=1)
                subsets = classes[order[:, :k]]
            counts = (subsets[:, :, None] == np.arange(len(right))).sum(axis=1)
            most = counts.max(axis=1, keepdims=True, initial=0)
            wins = (counts == most) & (most > 0)
            # Tied classes share the outcome; a subset without any vote has no winner and scores 0.
            of_subsets = (wins * right).sum(axis=1) / np.maximum(wins.sum(axis=1), 1)
            scores[k].append([float(of_subsets.mean())])
    return {str(k): bootstrap_mean(of_problems) for k, of_problems in scores.items()}


def _numbers(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which comes last; none where there is one sample."""
    # Powers of two are evenly spaced on the logarithmic axis of pass@k plots.
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []
