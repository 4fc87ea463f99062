"""The file of drawn samples: written as they come, and read again after an interruption.

One JSON object per line. Each names the weights it was drawn from and a hash of everything else that decides what is
drawn, so that nothing is graded under another model's name or other settings. Each has a checksum, so that a damaged
line is drawn again.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leadspan.answers.grading import Verdict
from leadspan.errors import EvaluationError
from leadspan.evaluation.sampling import Request, Sample
from leadspan.files import checked_line, with_checksum, write_atomically

logger = logging.getLogger(__name__)

Key = tuple[str, int]
"""Problem id and sample number."""


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
            stored = self._stored(row, number)
            request = requests.get(stored.key)
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

    def _stored(self, row: dict[str, Any], number: int) -> StoredSample:
        try:
            drawn = Sample(row["text"], row["num_tokens"], row["finish_reason"], row["loops"])
            stored = StoredSample(
                row["problem_id"], row["sample"], row["prompt"], drawn, row["thinking_closed"], row["seconds"]
            )
            weights, drawn_with = row["weights_hash"], row["drawn_with"]
        except (KeyError, TypeError):
            raise self._refusal(number, "it is no sample of this version") from None
        if weights != self.weights_hash:
            raise self._refusal(number, f"it was drawn from weights {weights}, not from {self.weights_hash}")
        if drawn_with != self.drawn_with:
            raise self._refusal(number, "it was drawn with other sampling settings, stop tokens or another engine")
        return stored

    def _refusal(self, number: int, why: str) -> EvaluationError:
        return EvaluationError(
            f"{self.path}:{number}: {why}; resume with the model, task and settings it was begun with, or give another "
            "output directory"
        )
