"""Write a recipe's truncated traces and tasks for other programs: TRL, Axolotl, LLaMA-Factory, lm-eval, lighteval."""

import argparse
from pathlib import Path

from leadspan.cli.output import load_libraries
from leadspan.cli.reading import add_recipe, read_recipe
from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, what to write and where."""
    add_recipe(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--what",
        choices=("data", "tasks", "all"),
        default="all",
        help="the truncated training data, the evaluation tasks, or both (all)",
    )
    parser.add_argument("--model", help="model that the evaluation commands name (the student of the recipe's run)")


def run(options: argparse.Namespace) -> None:
    """Write the requested files and print what they hold."""
    from leadspan.recipe import Part
    from leadspan.sources import check_output

    check_output("--output", options.output)
    sections: tuple[Part, ...] = ("data", "tasks")
    recipe = read_recipe(options, sections if options.what == "all" else [s for s in sections if s == options.what])
    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    from datasets import disable_progress_bars

    from leadspan.export.datasets import check_exportable, export_data
    from leadspan.export.tasks import export_tasks
    from leadspan.training.result import STUDENT_DIR

    # Bars of the library would stand between the lines that say what was written.
    disable_progress_bars()
    if options.what != "tasks":
        check_exportable(recipe)
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
        model = options.model or str(recipe.output / STUDENT_DIR)
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
