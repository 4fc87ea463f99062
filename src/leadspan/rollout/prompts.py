"""The prompts of rollouts as token ids: those of the traces, or the problems of a task."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from leadspan.data.sections import Renderer
from leadspan.errors import DataError
from leadspan.evaluation.sampling import encode
from leadspan.evaluation.tasks import load_task, task_prompts
from leadspan.rollout.settings import RolloutSettings, TaskPrompts


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: Token ids, including the generation header and an opening think tag in it.
        key: Hash of the ids.
        place: Where it comes from, for messages.
        teacher: Name of the teacher that scores its rollouts, where there are several.
    """

    ids: tuple[int, ...]
    key: str
    place: str
    teacher: str = ""


def rollout_prompts(
    settings: RolloutSettings, rows: Dataset, renderer: Renderer, window: int | None
) -> Sequence[Prompt]:
    """The prompts of a run, each once, in the order of their source: training rows, or the problems of a task.

    Raises:
        DataError: A prompt leaves no room for a new token in the window, or the task cannot be read.
    """
    candidates: list[Prompt] = []
    if isinstance(settings.prompts, TaskPrompts):
        task, system = settings.prompts.task, settings.prompts.system
        for number, text in enumerate(task_prompts(task.name, load_task(task), renderer, system), 1):
            candidates.append(_prompt(encode(renderer.tokenizer, text), f"task {task.name}, problem {number}"))
    else:
        # The opening think tag, where the template writes it before the student does.
        opening = encode(renderer.tokenizer, renderer.opening)
        columns: Any = rows.select_columns(["input_ids", "prompt_end", "place", "teacher"]).with_format("numpy")
        for row in columns:
            ids = [*row["input_ids"][: row["prompt_end"]].tolist(), *opening]
            candidates.append(_prompt(ids, str(row["place"]), str(row["teacher"])))
    # Several traces may answer one prompt; each teacher scores its own rollouts of it.
    prompts = list({(prompt.key, prompt.teacher): prompt for prompt in candidates}.values())
    full = [prompt for prompt in prompts if window is not None and len(prompt.ids) >= window]
    if full:
        raise DataError(
            f"rollout.prompts: {len(full)} of {len(prompts)} prompts leave no room for a new token in the student's "
            f"window of {window} tokens ({full[0].place} has {len(full[0].ids)}); leave them out, with data.max_tokens "
            "or in the file, or take a student with a longer window"
        )
    return prompts


def _prompt(ids: Sequence[int], place: str, teacher: str = "") -> Prompt:
    key = hashlib.sha256(np.asarray(ids, dtype=np.int32).tobytes()).hexdigest()[:16]
    return Prompt(tuple(ids), key, place, teacher)
