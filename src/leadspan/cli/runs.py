"""A student and what is passed on of it: trained, evaluated, described, uploaded; its data for other programs."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    ReadModel,
    argument,
    check_tasks,
    command,
    console_beside,
    load_libraries,
    read_model,
    read_recipe,
    recipe_file,
    setting,
    status_line,
    write_json,
)
from leadspan.errors import ModelError, RunError, SettingsError
from leadspan.sources import check_output
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.evaluation.settings import EvaluationSettings


@command(
    "Train a student from a recipe, evaluate it, and write a run directory.",
    *recipe_file(),
    argument("--resume", action="store_true", help="continue from the last complete checkpoint"),
    argument(
        "--dry-run",
        action="store_true",
        help="check the recipe, the files it names and the chat template, print it, and stop",
    ),
    JSON,
)
def distill(options: argparse.Namespace) -> None:
    """Resolve the recipe, then train or print it."""
    from leadspan.settings import dump_yaml

    if options.dry_run and options.json is not None:
        raise SettingsError("--json: a dry run prints the recipe and measures nothing; leave one of the two out")
    # A dry run is for machines without a network too.
    recipe = read_recipe(options, must_answer=not options.dry_run)
    load_libraries()
    if options.dry_run:
        from leadspan.costs.memory import disk_bytes
        from leadspan.inputs import check_renderings
        from leadspan.planning.prediction import student_shape
        from leadspan.planning.tables import disk_of_run

        check_renderings([recipe])
        print_plain(dump_yaml(recipe).rstrip("\n"))
        try:
            disk = disk_of_run(disk_bytes(student_shape(recipe)))
        except ModelError as error:  # such as a config behind a network that is not there
            disk = f"Disk: not known: {error}"
        print_plain("".join(f"# {line}\n" for line in disk.splitlines()).rstrip("\n"))  # what is printed stays a recipe
        return
    from leadspan.pipeline.run import run as run_recipe
    from leadspan.report.write import run_summary
    from leadspan.tables import quantity, rich_table
    from leadspan.training.process import process_state
    from leadspan.training.result import CHECKPOINTS_DIR

    state = process_state()
    with status_line():
        result = run_recipe(recipe, options.resume)
    if state.is_main_process:
        console = console_beside(options.json)
        console.print(rich_table(run_summary(result)))
        directory, checkpoints = f"run directory: {recipe.output}", recipe.output / CHECKPOINTS_DIR
        if num_bytes := sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()):
            size = quantity("peak_memory_bytes", num_bytes)
            directory += f", of which {checkpoints} takes {size}; training.keep_checkpoints=false leaves none behind "
            directory += "a finished run"
        console.print(directory, highlight=False, soft_wrap=True)
        write_json(result.model_dump(mode="json"), options.json)


@command(
    "Evaluate a model on tasks: accuracy, termination, token counts; every sample is stored.",
    argument("model", help="directory in Hugging Face form, Hub name, or a run directory"),
    argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="known benchmark (aime24, math500, gpqa, ...), BENCHMARK=FILE, file of problems, or Hub dataset name; "
        "also a setting, as with --set",
    ),
    argument(
        "--output",
        type=Path,
        required=True,
        help="directory for run.json and samples; after an interruption, the same command resumes",
    ),
    argument("--limit", type=int, help="evaluate only this many problems of each task"),
    JSON,
    argument("--label", help="name of the model in tables"),
    setting("a setting: sampling.temperature=0, tasks.0.instruction='...', rendering.assistant_turn=append"),
)
def evaluate(options: argparse.Namespace) -> None:
    """Build the settings from the options, evaluate, write `run.json` and the card of a trained student."""
    check_output("--output", options.output)
    evaluated, settings = read_evaluation(options)
    load_libraries()
    from leadspan.environment import environment
    from leadspan.evaluation.evaluate import evaluate_model
    from leadspan.hub import write_card
    from leadspan.pipeline.directory import claimed
    from leadspan.report.write import run_summary
    from leadspan.results import RUN_FILE, RunResult, save_run
    from leadspan.tables import rich_table
    from leadspan.training.result import STUDENT_DIR

    trained = evaluated.run
    with claimed(options.output):
        # A finished evaluation is not resumed; an interrupted one has no run.json yet.
        if (options.output / RUN_FILE).exists():
            raise RunError(f"--output {options.output}: it holds a finished run; give another directory")
        with status_line():
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


def read_evaluation(options: argparse.Namespace) -> "tuple[ReadModel, EvaluationSettings]":
    """The model and the settings that the options name, after a check that their files exist."""
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


@command(
    "Rewrite the model card of a run's student, with further evaluations and its retention against the uncut student.",
    argument("run", type=Path, metavar="RUN", help="run directory of a trained student"),
    argument("--evaluated", type=Path, nargs="+", default=[], metavar="DIR", help="outputs of `leadspan evaluate RUN`"),
    argument(
        "--full",
        type=Path,
        metavar="RUN",
        help="run of the same recipe without a cut, to compare with (one in the same directory)",
    ),
)
def card(options: argparse.Namespace) -> None:
    """Write the card, and print its path."""
    from leadspan.data.truncation import Full
    from leadspan.results import load_run

    result = load_run(options.run)
    if result.train is None or result.recipe is None:
        raise RunError(f"{options.run}: it has trained no student; give the directory of a `leadspan distill`")
    evaluations = {evaluation.task: evaluation for evaluation in result.evaluations}
    for directory in options.evaluated:
        reference = load_run(directory)
        if reference.recipe != result.recipe:
            raise RunError(
                f"{directory}: it evaluates another run than {options.run}; give the output of `evaluate RUN`"
            )
        # A later evaluation of a task replaces the one at the end of training.
        evaluations |= {evaluation.task: evaluation for evaluation in reference.evaluations}
    full = load_run(options.full) if options.full else None
    if full is not None and not isinstance(full.policy, Full):
        raise RunError(
            f"--full {options.full}: its student has not learnt from uncut traces; give one whose cut is full"
        )
    shown = result.model_copy(update={"evaluations": list(evaluations.values())})
    # These import torch, which waits until the runs are known to be there.
    from leadspan.hub import write_card
    from leadspan.pipeline.directory import claimed

    # A run that is being written must not get a second writer.
    with claimed(options.run):
        print_plain(f"model card: {write_card(shown, options.run, full)}")


@command(
    "Upload a run's student with its model card to the Hugging Face Hub.",
    argument("run", type=Path, metavar="RUN", help="run directory of a trained student"),
    argument("name", metavar="NAME", help="USER/MODEL on the Hub; created if it does not exist"),
    argument("--private", action="store_true", help="make a new repository private"),
)
def push(options: argparse.Namespace) -> None:
    """Upload, and print the address of the commit."""
    from leadspan.hub import check_push, push_student
    from leadspan.results import load_run
    from leadspan.status import report_status
    from leadspan.training.result import STUDENT_DIR

    # Only a finished run is pushed: one that still trains has no student yet.
    load_run(options.run)
    check_push(options.name)
    with status_line():
        report_status(f"uploading {options.run / STUDENT_DIR} to {options.name}")
        # Without --private the Hub's own default holds for a new repository.
        commit = push_student(options.run / STUDENT_DIR, options.name, options.private or None)
    print_plain(f"pushed: {commit}")


@command(
    "Write a recipe's truncated traces and tasks for other programs: TRL, Axolotl, LLaMA-Factory, lm-eval, lighteval.",
    *recipe_file(),
    argument("--output", type=Path, required=True, metavar="DIR", help="directory to write"),
    argument(
        "--what",
        choices=("data", "tasks", "all"),
        default="all",
        help="the truncated training data, the evaluation tasks, or both (all)",
    ),
    argument("--model", help="model that the evaluation commands name (the student of the recipe's run)"),
)
def export(options: argparse.Namespace) -> None:
    """Write the requested files and print what they hold."""
    from leadspan.recipe import Part

    check_output("--output", options.output)
    sections: tuple[Part, ...] = ("data", "tasks")
    recipe = read_recipe(options, sections if options.what == "all" else [s for s in sections if s == options.what])
    load_libraries()
    from datasets import disable_progress_bars

    from leadspan.export.datasets import export_data
    from leadspan.export.tasks import export_tasks

    # Bars of the library would stand between the lines that say what was written.
    disable_progress_bars()
    if options.what != "tasks":
        data = export_data(recipe, options.output)
        print_plain(
            f"{data.num_train:,} training examples under {recipe.cut.label}: {data.num_tokens:,} tokens, "
            f"{data.num_labels:,} labels; {data.num_validation:,} validation examples, uncut"
        )
        for reason, number in {**data.counts.dropped, **data.left_out}.items():
            print_plain(f"left out: {number:,} x {reason}")
        print_plain("\n".join(f"wrote {file}" for file in data.files))
    # A recipe without tasks is fine, unless tasks alone were asked for.
    if options.what == "tasks" or (options.what == "all" and recipe.evaluation.tasks):
        model = options.model or str(recipe.student_directory)
        tasks = export_tasks(recipe, options.output / "tasks", model)
        print_plain("\n".join(f"wrote {file}" for file in tasks.files))
        print_plain(f"\nlm-evaluation-harness, in an environment that has leadspan too:\n  {tasks.harness}")
        if tasks.lighteval:
            print_plain(
                f"lighteval, in an environment of its own, with its own prompts and graders:\n  {tasks.lighteval}"
            )
        if recipe.evaluation.sampling.thinking_budget is not None:
            print_plain("neither can close thinking after sampling.thinking_budget: their figures are by itself")
        if tasks.without_lighteval:
            print_plain(f"not among lighteval's tasks: {', '.join(tasks.without_lighteval)}")
