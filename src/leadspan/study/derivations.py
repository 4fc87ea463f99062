"""How often a student of a generated world derives the answer, whatever it writes afterwards.

Accuracy asks for everything at once: the derivation, whatever follows it, the answer and the stop. In a world the right
derivation of a problem is known, so that it can be looked for in the samples by itself: what a cut did to the skill is
then told apart from what it did to the ending.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from leadspan.errors import RunError
from leadspan.evaluation.config import TaskSettings
from leadspan.evaluation.statistics import bootstrap_mean
from leadspan.evaluation.tasks import load_task
from leadspan.results import EvalResult, RunResult
from leadspan.settings import validate
from leadspan.worlds.files import problems_of


def with_derivations(runs: Sequence[RunResult]) -> list[RunResult]:
    """The same runs, a sample being right when its chain of thought begins with the whole right derivation.

    The derivation reaches through the first statement of the answer; where the chain of thought never states it, it is
    all of it. What follows may be anything.

    Raises:
        RunError: A file of samples is missing, or a problem is none of the world's.
        SettingsError: A task does not lie beside the record of its world.
    """
    return [run.model_copy(update={"evaluations": [_derived(run, found) for found in run.evaluations]}) for run in runs]


def _derived(run: RunResult, found: EvalResult) -> EvalResult:
    task = next(task for task in run.recipe["evaluation"]["tasks"] if task["name"] == found.task)
    known = _derivations(validate(TaskSettings, task, f"task of {run.name}"))
    path = Path(run.recipe["output"]) / str(found.samples_file)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); start where the study was run") from None
    correct: dict[str, list[int]] = {}
    for row in rows:
        if row["problem_id"] not in known:
            raise RunError(
                f"{path}: problem {row['problem_id']} is none of {task['path']}; evaluate on that task again"
            )
        correct.setdefault(row["problem_id"], []).append(int(_begins(row["text"], known[row["problem_id"]])))
    return found.model_copy(update={"correct": correct, "accuracy_strict": bootstrap_mean(list(correct.values()))})


def _derivations(task: TaskSettings) -> dict[str, str]:
    """Problem id to derivation, of the held-out problems of a set."""
    file = Path(task.path)
    drawn = problems_of(file.parent, file.stem.removesuffix("_test"), "test")
    derivations = {problem.prompt: problem.derivation for problem in drawn}
    return {problem.problem_id: derivations[problem.text] for problem in load_task(task)}


def _begins(text: str, derivation: str) -> bool:
    """Whether a chain of thought begins with the lines of a derivation."""
    lines = text.removeprefix("<think>").lstrip("\n")
    return lines.startswith(derivation) and lines[len(derivation) : len(derivation) + 1] in ("", "\n", "<")
