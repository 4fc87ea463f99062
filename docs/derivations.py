"""How often a student of a generated world derives the answer, whatever it writes afterwards.

Accuracy asks for everything at once: the derivation, whatever follows it, the answer and the stop. In a world the right
derivation of a problem is known, so that it can be looked for in the samples by itself: what a cut did to the skill is
then told apart from what it did to the ending.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from leadspan.errors import RunError
from leadspan.evaluation.result import EvalResult
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import load_task
from leadspan.results import RunResult, check_written
from leadspan.settings import load_json
from leadspan.statistics.intervals import bootstrap_mean
from leadspan.worlds.files import WORLD_FILE, WorldRecord
from leadspan.worlds.problems import Problem, Split

_EQUATION = re.compile(r"\d+ *[-+*/] *\d+ *= *\d+")


def with_derivations(runs: Sequence[RunResult]) -> list[RunResult]:
    """The same runs, a sample being right when its chain of thought begins with the whole right derivation.

    The derivation reaches through the first statement of the answer; where the chain of thought never states it, it is
    all of it. What follows may be anything.

    Raises:
        RunError: A file of samples is missing, or a problem is none of the world's.
        SettingsError: A task does not lie beside the record of its world.
    """
    by_itself = ([evaluation for evaluation in run.evaluations if evaluation.answering == "by itself"] for run in runs)
    return [
        run.model_copy(update={"evaluations": [_derived(run, evaluation) for evaluation in evaluations]})
        for run, evaluations in zip(runs, by_itself, strict=True)
    ]


def _derived(run: RunResult, evaluation: EvalResult) -> EvalResult:
    assert run.recipe is not None, "runs of a study have recipes"
    task = next(task for task in run.recipe.evaluation.tasks if task.name == evaluation.task)
    problems = _problems(task)
    path = run.recipe.output / str(evaluation.samples_file)
    check_written(path)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); start where the study was run") from None
    correct: dict[str, list[int]] = {}
    for row in rows:
        if row["problem_id"] not in problems:
            raise RunError(f"{path}: problem {row['problem_id']} is none of {task.path}; evaluate on that task again")
        correct.setdefault(row["problem_id"], []).append(int(is_derived_in(problems[row["problem_id"]], row["text"])))
    return evaluation.model_copy(update={"correct": correct, "accuracy_strict": bootstrap_mean(list(correct.values()))})


def _problems(task: TaskSettings) -> dict[str, Problem]:
    """The held-out problems of a set by their id in the task."""
    file = Path(task.path)
    drawn = {problem.prompt: problem for problem in problems_of(file.parent, file.stem.removesuffix("_test"), "test")}
    return {problem.problem_id: drawn[problem.text] for problem in load_task(task)}


def is_derived_in(problem: Problem, text: str) -> bool:
    """Whether a text begins with the whole right derivation of a problem, whatever follows.

    Where words are free, its first equations are the right ones; else it begins with the very lines.
    """
    # The tag is in the text where the prompt does not open the thinking.
    lines = text.removeprefix("<think>").lstrip("\n")
    if problem.equations:
        equations = [match.replace(" ", "") for match in _EQUATION.findall(lines)]
        return equations[: len(problem.equations)] == [equation.replace(" ", "") for equation in problem.equations]
    # The last line must end there: a derivation that ends in 4 is not one that ends in 42.
    return lines.startswith(problem.derivation) and lines[len(problem.derivation) :][:1] in ("", "\n", "<")


def problems_of(directory: Path, name: str, split: Split) -> list[Problem]:
    """The problems of a set of a world on disk, drawn again with their derivations.

    Raises:
        SettingsError: There is no world.
        RunError: It has no such set, or the files hold other problems, as those that another version has drawn.
    """
    record = load_json(WorldRecord, directory / WORLD_FILE, "write it with `leadspan world`")
    path = directory / (f"{name}.jsonl" if split == "train" else f"{name}_test.jsonl")
    if name not in record.sets:
        raise RunError(f"{directory / WORLD_FILE}: it has no set {name} ({', '.join(record.sets)})")
    problem_set = record.sets[name].settings
    number = problem_set.num_traces if split == "train" else problem_set.num_problems
    # The files hold no derivations, so the problems are drawn again; that they are the same is seen by their prompts.
    drawn = problem_set.world.problems(number, record.seed, split)
    column = "prompt" if split == "train" else "problem"
    try:
        written = [json.loads(line)[column] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError):
        raise RunError(f"{path}: cannot be read; write the world again with `leadspan world`") from None
    if written != [problem.prompt for problem in drawn]:
        raise RunError(
            f"{path}: it holds other problems than this version draws; read it with the version that wrote it, or "
            "write the world and run the study again"
        )
    return drawn
