"""The tasks of a recipe for other evaluation programs: lm-evaluation-harness files, and a lighteval command.

An exported task holds the prompts, rendered by the recipe's template, and names the graders below: the harness sends
the prompts that `leadspan evaluate` sends, draws the answers, and calls one of the graders for each problem. Two things
differ. The harness does not pass on how an answer ended, so an answer that closes its thinking counts as finished even
where the cap on new tokens cut it off later. And its random streams are not those of `SeededSampling`.

For lighteval the command names lighteval's own versions of the tasks, so its numbers depend on its prompts and graders.
It pins versions of packages that conflict with leadspan's, so install it in an environment of its own.

**Source**: lm-evaluation-harness 0.4.13, `TaskConfig`; lighteval 0.13, `lighteval accelerate` and its task registry.
"""

import atexit
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from leadspan.answers.boxes import is_thinking_closed, with_usual_tags
from leadspan.answers.grading import GradeItem, MathGrader, Verdict, exact_grade, literal_grade
from leadspan.data.prompts import PromptRenderer
from leadspan.errors import SettingsError
from leadspan.evaluation.settings import SamplingSettings, TaskSettings
from leadspan.evaluation.tasks import choice_grade, load_task, task_prompts
from leadspan.export.trainers import to_yaml
from leadspan.files import file_names, write_atomically
from leadspan.models.reading import load_tokenizer
from leadspan.recipe import Recipe

METRICS = ("accuracy_strict", "accuracy_flexible", "thinking_closed")
"""The metrics that the functions return for a problem: means over its samples."""
LIGHTEVAL_TASKS = {
    "aime24": "aime24",
    "aime25": "aime25",
    "math500": "math_500",
    "gsm8k": "gsm8k",
    "gpqa": "gpqa:diamond",
    "mmlu_pro": "mmlu_pro",
}
"""Benchmarks for which lighteval generates answers, with its names for them."""


@dataclass(frozen=True, slots=True)
class WrittenTasks:
    """Task files with their problems, the tasks' names in the harness, and the commands that run them.

    `lighteval` is None where it has none of the tasks; those that it lacks are in `without_lighteval`.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    harness: str
    lighteval: str | None
    without_lighteval: tuple[str, ...]


def export_tasks(recipe: Recipe, directory: Path, model: str) -> WrittenTasks:
    """Write the tasks of a recipe for the harness, and give the commands that evaluate a model on them.

    Raises:
        SettingsError: The recipe has no tasks.
        LeadspanError: A task cannot be read, or the tokenizer has no template.
    """
    settings, sampling = recipe.evaluation, recipe.evaluation.sampling
    if not settings.tasks:
        raise SettingsError("export: the recipe has no evaluation.tasks; add one")
    renderer = PromptRenderer(load_tokenizer(recipe.tokenizer_path, recipe.tokenizer_revision), recipe.data.rendering)
    tags = renderer.rendering.model_dump(include={"think_open", "think_close"})
    added = renderer.tokenizer.added_tokens_decoder.values()
    if lost := [token.content for token in added if token.special and token.content in tags.values()]:
        raise SettingsError(
            f"export: the tokenizer marks {' and '.join(lost)} as special, and lm-evaluation-harness leaves these "
            "tokens out of answers, so that none would be finished; use `leadspan evaluate`, and --what data for traces"
        )
    files: list[Path] = []
    names = [f"leadspan_{name}" for name in file_names([task.name for task in settings.tasks], "_")]
    for name, task in zip(names, settings.tasks, strict=True):
        # All that a task holds is written out, so that the harness reads no other version of a data set.
        problems = load_task(task)
        prompts = task_prompts(task.name, problems, renderer, settings.system)
        rows = [
            {
                "problem_id": problem.problem_id,
                "prompt": prompt,
                "gold": problem.entry or problem.gold,
                "choices": list(problem.choices),
                **tags,
            }
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
        files += [directory / f"{name}.jsonl", directory / f"{name}.yaml"]
        write_atomically(files[-2], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_atomically(files[-1], task_yaml(name, task, sampling, files[-2]))
    # No chat template: the prompts are already rendered.
    harness = [
        # Nor a token that the tokenizer adds by itself and the template does not.
        *("lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=auto,add_bos_token=False"),
        *("--tasks", ",".join(names), "--include_path", str(directory)),
        *("--batch_size", str(sampling.batch_size), "--seed", str(sampling.seed), "--log_samples"),
        *("--output_path", str(directory / "results")),
    ]
    # Its own versions of the tasks, zero-shot, with the recipe's sampling.
    drawn = {"temperature": f"{sampling.temperature:g}", "top_p": f"{sampling.top_p:g}"}
    drawn |= {"max_new_tokens": str(sampling.max_new_tokens), "seed": str(sampling.seed)}
    drawn |= {"top_k": str(sampling.top_k)} if sampling.top_k is not None else {}
    generation = ",".join(f"{name}:{value}" for name, value in drawn.items())
    tasks = [f"{LIGHTEVAL_TASKS[task.benchmark]}|0" for task in settings.tasks if task.benchmark in LIGHTEVAL_TASKS]
    arguments = f"model_name={model},generation_parameters={{{generation}}}"
    lighteval = ["lighteval", "accelerate", arguments, ",".join(tasks)]
    return WrittenTasks(
        files=tuple(files),
        names=tuple(names),
        harness=shlex.join(harness),
        lighteval=shlex.join(lighteval) if tasks else None,
        without_lighteval=tuple(task.name for task in settings.tasks if task.benchmark not in LIGHTEVAL_TASKS),
    )


def task_yaml(name: str, task: TaskSettings, sampling: SamplingSettings, problems: Path) -> str:
    """The file of one task: its problems, the sampling settings and the grading function."""
    repeats = sampling.samples_per_problem or task.samples_per_problem
    drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_gen_toks": sampling.max_new_tokens}
    # What is left out would come from the model's own generation config; these are no limits and no penalty.
    drawn["repetition_penalty"] = 1.0
    if sampling.temperature > 0:
        drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        drawn |= {"top_k": sampling.top_k or 0, "min_p": 0.0}
    values: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(problems.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": [], **drawn},  # an empty list: only the end-of-turn token ends an answer
        "num_fewshot": 0,
        "repeats": repeats,
        # Without a filter of its own the harness grades the first sample alone.
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": repeats}]}],
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
        "metadata": {"version": 1.0},
    }
    # A tag of the harness, written as text because the YAML writer would quote it.
    return to_yaml(values) + f"process_results: !function leadspan.export.harness.{task.grader}_results\n"


def _by(grade: Callable[[list[GradeItem]], list[Verdict]]) -> Callable[..., dict[str, float]]:
    """The harness's function of a grader: means over the samples of one problem."""

    def results(doc: Mapping[str, Any], results: Sequence[str | list[str]]) -> dict[str, float]:
        # `doc` is a line of the exported problems; a task that repeats has its texts in one list.
        texts = [text for result in results for text in ([result] if isinstance(result, str) else result)]
        # The tags of the run's template, which differ from model to model.
        tags = doc["think_open"], doc["think_close"]
        closed = [is_thinking_closed(text, doc["prompt"], *tags) for text in texts]
        choices = tuple(doc.get("choices") or ())
        items = [
            GradeItem(with_usual_tags(text, is_closed, *tags), doc["gold"], is_closed, choices)
            for text, is_closed in zip(texts, closed, strict=True)
        ]
        verdicts = grade(items)
        strict, flexible = ([getattr(v, rule) == "right" for v in verdicts] for rule in ("strict", "flexible"))
        # Booleans count as 0 and 1: the harness then averages the means of all problems.
        return {name: sum(of) / len(texts) for name, of in zip(METRICS, (strict, flexible, closed), strict=True)}

    return results


@cache
def _grader() -> MathGrader:
    grader = MathGrader(item_seconds=10.0)
    grader.__enter__()
    # The harness offers no hook at its end, and processes left running would keep it from ending.
    atexit.register(grader.__exit__, None, None, None)
    return grader


math_results = _by(lambda items: _grader().grade(items))
"""Grades with Math-Verify in killable processes, which run until the harness ends."""
exact_results = _by(lambda items: list(map(exact_grade, items)))
"""Grades by equality with the reference."""
choice_results = _by(lambda items: list(map(choice_grade, items)))
"""Grades the letter of a choice."""
literal_results = _by(lambda items: list(map(literal_grade, items)))
"""Grades by equality as Python literals."""
reasoning_gym_results = _by(lambda items: _grader().grade_by_verifier(items))
"""Grades by the verifier of the data set that generated the problem; the gold is the data set's entry."""
