"""Rollouts in files: the record of a training run, and the whole rollouts of a store.

The record has one JSON object per line, in the order of steps, written when a step ends. When training resumes from a
checkpoint, the lines of later steps are removed; the steps write the same lines again.

The rollouts of a store are drawn once at full length from the untrained student, and stored with the teacher's targets.
A causal teacher's targets on a prefix do not depend on what follows it, so one store of whole rollouts serves every
horizon. Training from it is the offline form of on-policy distillation (Lightning OPD, arXiv 2604.13010).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from leadspan.data.prepare import FEATURES
from leadspan.data.supervision import ANSWER, COT
from leadspan.errors import CacheError, RunError, TargetsError
from leadspan.files import checked_line, with_checksum, write_atomically
from leadspan.rollout.drawing import RolloutInputs, WholeIds, draw_rollouts
from leadspan.rollout.rows import Ending, Turn, room, to_rollout

logger = logging.getLogger(__name__)

ROLLOUTS_FILE = "rollouts.jsonl"
_DAMAGED = "so what the earlier steps cost is not known; start again in another output"


@dataclass(frozen=True, slots=True)
class RolloutLine:
    """One rollout in the record."""

    step: int  # optimiser step, from 0
    prompt: str  # hash of its token ids and its teacher
    sample: int  # its number among those of the prompt in the step
    seed: int  # of its random stream
    prompt_tokens: int
    tokens: int  # new tokens, one that ends the turn included
    weighted: int  # positions with a loss
    scored: int  # positions that the models' scores select from; 0 where they select none
    cap: int  # most new tokens that it could have
    whole: bool  # whether it could reach the full length, whatever the horizon
    ending: Ending  # what ended it
    text: str  # the drawn text, with special tokens
    # Share of the weighted new tokens at which the student's likeliest token was the teacher's; None: not known.
    overlap: float | None = None
    # The same over the last quarter of the step's horizon; None for a rollout that ended before it, too.
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


_BATCHES = 8  # drawn between two writes to the file: the most that a kill loses


def drawn_rollouts(
    inputs: RolloutInputs, path: Path, load_student: Callable[[], PreTrainedModel] | None, use_bf16: bool
) -> tuple[WholeIds, list[int]]:
    """Draw the rollouts that a file lacks or has damaged: `samples_per_prompt` whole ones of every prompt.

    The student is loaded only where one is missing, and has Transformers' own attention; without `load_student` nothing
    is drawn or written.

    Returns:
        The rollouts, and the most positions of each that is not drawn yet.

    Raises:
        TargetsError: The rollouts of the file were drawn with other settings.
    """
    header, turns = _header(inputs), _whole_turns(inputs)
    before, new_ids, damaged = _read(path)
    if before and before != header:
        raise TargetsError(f"{path}: drawn with {before}, now {header}; give another capture.path")
    # Step 0 in the key of every random stream.
    lacking = [(0, turn) for key, turn in turns.items() if key not in new_ids]
    if load_student is None:
        prompts = [(turn, inputs.prompts[turn.prompt]) for _, turn in lacking]
        return new_ids, [room(turn, prompt, inputs.window) + len(prompt.ids) - 1 for turn, prompt in prompts]
    if damaged:
        logger.warning("%s: damaged in %d lines, first line %d; drawn again", path, len(damaged), damaged[0])
    # Written again without a half-written last line; the new rollouts are appended to it.
    write_atomically(path, "".join([with_checksum(header), *map(_line, new_ids.items())]))
    student, size = load_student() if lacking else None, _BATCHES * inputs.course.settings.batch_size
    for start in range(0, len(lacking), size):
        assert student is not None, "loaded above"
        with path.open("a", encoding="utf-8") as file:
            for rollout in draw_rollouts(student, inputs, lacking[start : start + size], use_bf16):
                key = rollout.prompt.key, rollout.turn.sample
                new_ids[key] = list(rollout.new_ids)
                file.write(_line((key, new_ids[key])))
    if damaged:  # as if they had been drawn in their turn
        new_ids = {key: new_ids[key] for key in turns} | new_ids
        write_atomically(path, "".join([with_checksum(header), *map(_line, new_ids.items())]))
    return new_ids, []


def stored_rollouts(inputs: RolloutInputs, path: Path) -> WholeIds:
    """The rollouts of a file, which must be all that a run needs.

    Raises:
        TargetsError: There is none, or its rollouts are of other prompts, shorter, or of another temperature.
        CacheError: It is damaged.
    """
    header, new_ids, damaged = _read(path)
    if damaged:
        raise CacheError(
            f"{path}: damaged in {len(damaged)} lines, first line {damaged[0]}; run `leadspan capture` again, which "
            "draws them again"
        )
    if header is None:
        raise TargetsError(f"{path}: not found; run `leadspan capture` with the rollout of this recipe")
    needed, needed_turns = _header(inputs), _whole_turns(inputs)
    if header["temperature"] != needed["temperature"] or header["max_new_tokens"] < needed["max_new_tokens"]:
        raise TargetsError(
            f"{path}: drawn with {header}, and rollout asks for {needed}: the temperature must be the same and "
            "max_new_tokens no greater; change rollout, or capture again"
        )
    # The seed may differ: any draws from the same distribution will do.
    if missing := sum(key not in new_ids for key in needed_turns):
        raise TargetsError(
            f"{path}: {missing} of {len(needed_turns)} rollouts are not there; capture with these prompts and "
            "rollout.samples_per_prompt"
        )
    return new_ids


def rollout_rows(inputs: RolloutInputs, new_ids: WholeIds) -> Dataset:
    """Whole rollouts as rows, as `data.prepare` writes those of traces."""
    rows = []
    for key, turn in _whole_turns(inputs).items():
        if (ids := new_ids.get(key)) is None:  # not drawn yet, in a dry run
            continue
        prompt, turn = inputs.prompts[turn.prompt], replace(turn, cap=len(ids))
        example = inputs.rows.example(to_rollout(turn, prompt, ids, inputs.stop_ids, (len(ids), None)))
        cot_end = len(example.input_ids) - int((example.section_ids == ANSWER).sum())
        prompt_end = cot_end - int((example.section_ids == COT).sum())
        # The closing tag counts as chain of thought, so both borders are the same.
        borders = {"prompt_end": prompt_end, "think_end": cot_end, "cot_end": cot_end}
        tokens = len(example.input_ids)
        row = {"input_ids": example.input_ids, **borders, "stop": tokens - 1, "steps": [], "num_tokens": tokens}
        names = {"example_id": example.example_id, "question_id": prompt.key, "question": "", "place": prompt.place}
        rows.append({**row, **names, "teacher": example.teacher, "gold": ""})
    return Dataset.from_list(rows, features=FEATURES)


def _header(inputs: RolloutInputs) -> dict[str, Any]:
    settings = inputs.course.settings
    return {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens, "seed": inputs.course.seed}


def _whole_turns(inputs: RolloutInputs) -> dict[tuple[str, int], Turn]:
    """The rollouts of a store, each once whatever the step, by key of the prompt and number of the sample."""
    settings = inputs.course.settings
    return {
        (prompt.key, sample): Turn(number, sample, settings.max_new_tokens, True)
        for number, prompt in enumerate(inputs.prompts)
        for sample in range(settings.samples_per_prompt)
    }


def _line(rollout: tuple[tuple[str, int], list[int]]) -> str:
    (prompt, sample), ids = rollout
    return with_checksum({"prompt": prompt, "sample": sample, "ids": ids})


def _read(path: Path) -> tuple[dict[str, Any] | None, WholeIds, list[int]]:
    """Header, rollouts and numbers of damaged lines; without a whole header, nothing of the file counts.

    A last line that a killed process has left half written is passed over. There is no header where there is no file.
    """
    if not path.exists():
        return None, {}, []
    lines = [checked_line(line) for line in path.read_bytes().split(b"\n")[:-1]]
    header = lines[0] if lines else None
    if header is None:
        return None, {}, [1]
    damaged = [number for number, line in enumerate(lines, 1) if line is None]
    return header, {(line["prompt"], line["sample"]): line["ids"] for line in lines[1:] if line is not None}, damaged
