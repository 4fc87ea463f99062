"""The record of all rollouts of a run: one JSON object per line, in the order of steps, written when a step ends.

When training resumes from a checkpoint, the lines of later steps are removed; the steps write the same lines again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.rollout.rows import Ending

ROLLOUTS_FILE = "rollouts.jsonl"
_DAMAGED = "so what the earlier steps cost is not known; start again in another output"


@dataclass(frozen=True, slots=True)
class RolloutLine:
    """One rollout in the record.

    Attributes:
        step: Optimiser step, from 0.
        prompt: Hash of the prompt's token ids.
        sample: Number of the sample of the prompt in the step.
        seed: Seed of its random stream.
        prompt_tokens: Tokens of the prompt.
        tokens: New tokens, one that ends the turn included.
        weighted: Positions with a loss.
        scored: Positions that the models' scores select from; 0 where they select none.
        cap: Most new tokens that it could have.
        whole: Whether it could reach the full length, whatever the horizon.
        ending: What ended it.
        text: The drawn text, with special tokens.
        overlap: Share of the weighted new tokens at which the student's likeliest token was the teacher's; None where
            that is not known.
        end_overlap: The same over the last quarter of the step's horizon; None for a rollout that ended before it, too.
    """

    step: int
    prompt: str
    sample: int
    seed: int
    prompt_tokens: int
    tokens: int
    weighted: int
    scored: int
    cap: int
    whole: bool
    ending: Ending
    text: str
    overlap: float | None = None
    end_overlap: float | None = None


class RolloutRecord:
    """The file of a run directory."""

    def __init__(self, path: Path):
        self.path = path
        self._num_bytes, self._digest = 0, hashlib.sha256()

    def begin(self, numbers: Sequence[int], writes: bool) -> list[list[RolloutLine]]:
        """Remove the lines of later steps; return the other lines by step.

        `numbers` says how many rollouts each step had, up to where training resumes. One process of several `writes`
        the file; the others only read it.

        Raises:
            RunError: A rollout of an earlier step is missing or damaged.
        """
        step = len(numbers)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        steps: list[list[RolloutLine]] = [[] for _ in range(step)]
        num_lines = 0  # of the steps before, in their order at the beginning of the file
        for number, line in enumerate(lines, 1):
            try:
                read = RolloutLine(**json.loads(line))
            except (ValueError, TypeError):
                break  # half written by a killed process, or damaged; the counts below show what is missing
            if not (isinstance(read.step, int) and 0 <= read.step < step):
                break
            steps[read.step].append(read)
            num_lines = number
        # The expected counts are not those of the file, so a lost line is noticed.
        for number, (expected, of_step) in enumerate(zip(numbers, steps, strict=True)):
            if len(of_step) != expected:
                raise RunError(
                    f"{self.path}: {len(of_step)} of {expected} rollouts of step {number} are left, {_DAMAGED}"
                )
        content = b"".join(lines[:num_lines])
        self._num_bytes, self._digest = len(content), hashlib.sha256(content)
        if writes:
            write_atomically(self.path, content)
        return steps

    def append(self, lines: Iterable[RolloutLine]) -> None:
        """Write the rollouts of a step."""
        content = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines).encode()
        with self.path.open("ab") as file:
            file.write(content)
        self._num_bytes += len(content)
        self._digest.update(content)

    def written(self) -> tuple[str, int, str]:
        """Name of the file, its size in bytes and its SHA-256, as it stands now."""
        return self.path.name, self._num_bytes, self._digest.hexdigest()
