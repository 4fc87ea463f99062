"""Rollouts of a store: drawn once at full length from the untrained student, and stored with the teacher's targets.

A causal teacher's targets on a prefix do not depend on what follows it, so one store of whole rollouts serves every
horizon. Training from it is the offline form of on-policy distillation (Lightning OPD, arXiv 2604.13010).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from leadspan.data.prepare import FEATURES
from leadspan.data.supervision import ANSWER, COT
from leadspan.digests import checked_line, with_checksum
from leadspan.errors import CacheError, TargetsError
from leadspan.files import write_atomically
from leadspan.rollout.course import Turn
from leadspan.rollout.drawing import RolloutInputs, WholeIds, draw_rollouts
from leadspan.rollout.rows import room, to_rollout

logger = logging.getLogger(__name__)

_BATCHES = 8  # drawn between two writes to the file: the most that a kill loses


def drawn_rollouts(
    inputs: RolloutInputs, path: Path, load_student: Callable[[], PreTrainedModel], use_bf16: bool
) -> WholeIds:
    """Draw the rollouts that a file lacks or has damaged: `samples_per_prompt` whole ones of every prompt.

    The student is loaded only where one is missing, and has Transformers' own attention.

    Raises:
        TargetsError: The rollouts of the file were drawn with other settings.
    """
    header = _header(inputs)
    before, new_ids, damaged = _read(path) if path.exists() else (None, {}, [])
    if before and before != header:
        raise TargetsError(f"{path}: drawn with {before}, now {header}; give another capture.path")
    if damaged:
        logger.warning("%s: damaged in %d lines, first line %d; drawn again", path, len(damaged), damaged[0])
    # Written again without a half-written last line; the new rollouts are appended to it.
    _write(path, header, new_ids)
    turns = [(0, turn) for turn in _missing(inputs, new_ids)]  # step 0 in the key of every random stream
    student, size = load_student() if turns else None, _BATCHES * inputs.course.settings.batch_size
    for start in range(0, len(turns), size):
        assert student is not None, "loaded above"
        portion = turns[start : start + size]
        with path.open("a", encoding="utf-8") as file:
            for (_, turn), drawn in zip(portion, draw_rollouts(student, inputs, portion, use_bf16), strict=True):
                prompt = inputs.prompts[turn.prompt]
                ids = to_rollout(turn, prompt, drawn.ids, inputs.stop_ids, (turn.cap, inputs.window)).new_ids
                new_ids[prompt.key, turn.sample] = list(ids)
                file.write(_line(prompt.key, turn.sample, ids))
    if damaged:  # as if they had been drawn in their turn
        new_ids = {key: new_ids[key] for key in _needed(inputs)} | new_ids
        _write(path, header, new_ids)
    return new_ids


def rollouts_so_far(inputs: RolloutInputs, path: Path) -> tuple[WholeIds, list[int]]:
    """The rollouts of a file that a capture would go on with, and the most positions of each that it would draw."""
    header, new_ids, _ = _read(path) if path.exists() else (None, {}, [])
    new_ids = new_ids if header == _header(inputs) else {}
    turns = [(turn, inputs.prompts[turn.prompt]) for turn in _missing(inputs, new_ids)]
    return new_ids, [room(turn, prompt, inputs.window) + len(prompt.ids) - 1 for turn, prompt in turns]


def stored_rollouts(inputs: RolloutInputs, path: Path) -> WholeIds:
    """The rollouts of a file, which must be all that a run needs.

    Raises:
        TargetsError: There is none, or its rollouts are of other prompts, shorter, or of another temperature.
        CacheError: It is damaged.
    """
    if not path.exists():
        raise TargetsError(f"{path}: not found; run `leadspan capture` with the rollout of this recipe")
    header, new_ids, damaged = _read(path)
    if header is None or damaged:
        raise CacheError(
            f"{path}: damaged in {len(damaged)} lines, first line {damaged[0]}; run `leadspan capture` again, which "
            "draws them again"
        )
    needed = _header(inputs)
    if header["temperature"] != needed["temperature"] or header["max_new_tokens"] < needed["max_new_tokens"]:
        raise TargetsError(
            f"{path}: drawn with {header}, and rollout asks for {needed}: the temperature must be the same and "
            "max_new_tokens no greater; change rollout, or capture again"
        )
    # The seed may differ: any draws from the same distribution will do.
    keys = _needed(inputs)
    missing = sum(key not in new_ids for key in keys)
    if missing:
        raise TargetsError(
            f"{path}: {missing} of {len(keys)} rollouts are not there; capture with these prompts and "
            "rollout.samples_per_prompt"
        )
    return new_ids


def rollout_rows(inputs: RolloutInputs, new_ids: WholeIds) -> Dataset:
    """Whole rollouts as rows, as `data.prepare` writes those of traces."""
    rows = []
    for index, sample in inputs.course.stored_turns:
        prompt = inputs.prompts[index]
        if (ids := new_ids.get((prompt.key, sample))) is None:  # not drawn yet, in a dry run
            continue
        turn = Turn(index, sample, len(ids), True)
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


def _missing(inputs: RolloutInputs, new_ids: WholeIds) -> list[Turn]:
    """The whole rollouts that are still to be drawn."""
    cap, turns = inputs.course.settings.max_new_tokens, inputs.course.stored_turns
    return [Turn(at, sample, cap, True) for at, sample in turns if (inputs.prompts[at].key, sample) not in new_ids]


def _needed(inputs: RolloutInputs) -> list[tuple[str, int]]:
    """Prompt and sample of every rollout, in the order of the file."""
    return [(inputs.prompts[prompt].key, sample) for prompt, sample in inputs.course.stored_turns]


def _line(prompt: str, sample: int, ids: Sequence[int]) -> str:
    return with_checksum({"prompt": prompt, "sample": sample, "ids": list(ids)})


def _write(path: Path, header: Mapping[str, Any], new_ids: WholeIds) -> None:
    lines = (_line(prompt, sample, ids) for (prompt, sample), ids in new_ids.items())
    write_atomically(path, "".join([with_checksum(header), *lines]))


def _read(path: Path) -> tuple[dict[str, Any] | None, WholeIds, list[int]]:
    """Header, rollouts and numbers of damaged lines; without a whole header, nothing of the file counts.

    A last line that a killed process has left half written is passed over.
    """
    lines = [checked_line(line) for line in path.read_bytes().split(b"\n")[:-1]]
    header = lines[0] if lines else None
    if header is None:
        return None, {}, [1]
    damaged = [number for number, line in enumerate(lines, 1) if line is None]
    return header, {(line["prompt"], line["sample"]): line["ids"] for line in lines[1:] if line is not None}, damaged
