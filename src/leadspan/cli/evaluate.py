"""Evaluate a model on tasks: accuracy, termination, token counts; every sample is stored."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.output import add_json, add_set, console_beside, load_libraries, write_json
from leadspan.cli.reading import ReadModel, check_tasks, read_model
from leadspan.sources import check_output
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.evaluation.settings import EvaluationSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, tasks, and the settings of `evaluation` as options."""
    parser.add_argument("model", help="directory in Hugging Face form, Hub name, or a run directory")
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="known benchmark (aime24, math500, gpqa, ...), BENCHMARK=FILE, file of problems, or Hub dataset name; "
        "also a setting, as with --set",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="directory for run.json and samples; after an interruption, the same command resumes",
    )
    parser.add_argument("--limit", type=int, help="evaluate only this many problems of each task")
    add_json(parser)
    parser.add_argument("--label", help="name of the model in tables")
    add_set(parser, "a setting: sampling.temperature=0, tasks.0.instruction='...', rendering.assistant_turn=append")


def run(options: argparse.Namespace) -> None:
    """Build the settings from the options, evaluate, write `run.json` and the card of a trained student."""
    check_output("--output", options.output)
    evaluated, settings = read(options)
    load_libraries()
    from leadspan.environment import environment
    from leadspan.errors import RunError
    from leadspan.evaluation.evaluate import evaluate_model
    from leadspan.hub.card import write_card
    from leadspan.pipeline.directory import claimed
    from leadspan.report.summary import run_summary
    from leadspan.results import RUN_FILE, RunResult, save_run
    from leadspan.status import PlainConsole, StatusLine
    from leadspan.tables import rich_table
    from leadspan.training.result import STUDENT_DIR

    trained = evaluated.run
    with claimed(options.output):
        # A finished evaluation is not resumed; an interrupted one has no run.json yet.
        if (options.output / RUN_FILE).exists():
            raise RunError(f"--output {options.output}: it holds a finished run; give another directory")
        with StatusLine(PlainConsole(stderr=True)):
            results = evaluate_model(
                evaluated.model, evaluated.tokenizer, evaluated.rendering, settings, options.output
            )
        record = {"environment": environment(settings.sampling.seed), "evaluations": results}
        if trained is not None:
            result = trained.model_copy(update=record | ({"label": options.label} if options.label else {}))
        else:
            label = options.label or Path(options.model).name
            seed = settings.sampling.seed
            result = RunResult(name=label, label=label, role="base", seed=seed, recipe=None, **record)
        save_run(result, options.output)
        if trained is not None and (Path(options.model) / STUDENT_DIR).is_dir() and trained.train is not None:
            # The card shows every task of the student, with its latest result.
            names = {evaluation.task for evaluation in results}
            before = [evaluation for evaluation in trained.evaluations if evaluation.task not in names]
            card = write_card(trained.model_copy(update={"evaluations": [*before, *results]}), Path(options.model))
            print_plain(f"model card: {card}", error=True)
        console = console_beside(options.json)
        console.print(rich_table(run_summary(result)))
        console.print(f"samples: {options.output / 'samples'}", highlight=False, soft_wrap=True)
        write_json(result.model_dump(mode="json"), options.json)


def read(options: argparse.Namespace) -> "tuple[ReadModel, EvaluationSettings]":
    """The model and the settings that the options name, after a check that their files exist."""
    from leadspan.errors import SettingsError
    from leadspan.evaluation.benchmarks import task_values
    from leadspan.evaluation.settings import EvaluationSettings
    from leadspan.settings import apply_overrides, validate

    names = {*EvaluationSettings.model_fields, "rendering"}
    overrides = [word for word in options.tasks if "=" in word and re.split("[.=]", word)[0] in names]
    tasks = [task for task in options.tasks if task not in overrides]
    if not tasks:
        raise SettingsError(f"there is no task beside the settings {' '.join(overrides)}; name a benchmark or a file")
    # Overrides change the tasks that the options name, so they come second.
    values: dict[str, Any] = {"tasks": [task_values(task, options.limit) for task in tasks]}
    apply_overrides(values, [*overrides, *options.overrides])
    evaluated = read_model(options.model, values.pop("rendering", None))
    # A student hears the system message that it was compared under in its own run.
    recipe = evaluated.run.recipe if evaluated.run else None
    settings = validate(
        EvaluationSettings, {"system": recipe.evaluation.system if recipe else "", **values}, "settings"
    )
    check_tasks("TASK", settings.tasks)
    return evaluated, settings
