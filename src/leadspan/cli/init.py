"""Write a commented recipe for your own traces and models, after a look at them."""

import argparse
import sys
from pathlib import Path

from leadspan.cli.output import load_libraries
from leadspan.cli.reading import check_tasks
from leadspan.text import print_plain

SCHEMA_FILE = "recipe.schema.json"
NUM_PROBLEMS = 100
# The next commands, in the order in which to run them, with what each shows.
_STEPS = {
    "audit {}": "lengths, where answers come first, what each cut loses",
    "preview {}": "sections, cut and weights on real records",
    "plan {}": "tokens, FLOPs, memory",
    "doctor {}": "checks, each with a remedy",
    "distill {}": "the student of this cut",
    "distill {} 'cut={{kind: full}}' name=full output=runs/{name}-full": "the one to compare it with",
    "report runs/{name} runs/{name}-full": "what the cut kept, and what it cost",
}
_ASKED = {
    "traces": "Traces (file, directory or Hub data set): ",
    "student": "Student to train (directory or Hub name): ",
    "teacher": "Teacher to imitate (directory or Hub name; empty for none): ",
    "task": "Task to compare runs by (benchmark, BENCHMARK=FILE, or file; empty for gsm8k): ",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Traces, models, task, and where the recipe goes."""
    parser.add_argument(
        "traces", nargs="?", help="trace file, directory of trace files, or Hub data set; asked for if absent"
    )
    parser.add_argument("--student", help="directory, Hub name or GGUF file of the model to train")
    parser.add_argument("--teacher", help="directory, Hub name or GGUF file of the model to imitate; optional")
    parser.add_argument("--task", help="known benchmark, BENCHMARK=FILE, or file of problems (gsm8k)")
    parser.add_argument("--name", help="name of the run (that of the recipe's file)")
    parser.add_argument("--output", type=Path, default=Path("recipe.yaml"), help="recipe to write (recipe.yaml)")
    parser.add_argument("--force", action="store_true", help="replace an existing recipe")


def run(options: argparse.Namespace) -> None:
    """Ask for missing inputs, examine them, write recipe and schema, and print the next commands."""
    import json

    from leadspan.errors import SettingsError
    from leadspan.evaluation.benchmarks import task_values
    from leadspan.evaluation.settings import TaskSettings
    from leadspan.models.settings import pretrained_at
    from leadspan.recipe import Recipe, load_recipe
    from leadspan.settings import json_schema, validate
    from leadspan.sources import Source, check_output, check_sources
    from leadspan.traces.read import check_layout
    from leadspan.traces.settings import TraceSource

    if options.output.exists() and not options.force:
        raise SettingsError(f"--output {options.output}: it exists already; give another, or --force to replace it")
    check_output("--output", options.output, is_directory=False)
    _ask(options)
    task = task_values(options.task or "gsm8k", NUM_PROBLEMS)
    # Named after the options, since there is no recipe yet.
    sources = [Source("TRACES", options.traces, "dataset"), Source("--student", options.student, "model")]
    sources += [Source("--teacher", options.teacher, "model")] if options.teacher else []
    check_sources(sources, str(options.output))
    check_tasks("--task", [validate(TaskSettings, task, "--task")])
    check_layout(TraceSource(path=options.traces))
    # Imports of torch wait until the inputs are known to exist.
    load_libraries()
    from leadspan.cli.new_recipe import RecipeChoices, recipe_text
    from leadspan.files import write_atomically
    from leadspan.status import PlainConsole, StatusLine, report_status

    with StatusLine(PlainConsole(stderr=True)):
        report_status(f"looking at {options.traces} and {options.student}")
        teacher = pretrained_at(options.teacher) if options.teacher else None
        name = options.name or options.output.stem
        choices = RecipeChoices(options.traces, pretrained_at(options.student), teacher, task, name)
        text = recipe_text(choices, SCHEMA_FILE)
    schema = options.output.with_name(SCHEMA_FILE)
    write_atomically(schema, json.dumps(json_schema(Recipe), indent=1) + "\n")
    write_atomically(options.output, text)  # last, since it is what the command asks not to be there
    load_recipe(options.output)  # a recipe that is written is valid, or the command fails here
    print_plain(f"wrote {options.output}, and {schema} for editors; then")
    steps = {f"leadspan {step.format(options.output, name=name)}": meaning for step, meaning in _STEPS.items()}
    width = max(map(len, steps))
    print_plain("\n".join(f"  {step:<{width}}  # {meaning}" for step, meaning in steps.items()))


def _ask(options: argparse.Namespace) -> None:
    """Ask on a terminal for missing options; elsewhere refuse to run without the required ones."""
    from leadspan.errors import SettingsError

    # A script must not wait for an answer.
    is_asked = sys.stdin.isatty() and None in (options.traces, options.student)
    for key, question in _ASKED.items():
        if is_asked and getattr(options, key) is None:
            setattr(options, key, input(question).strip() or None)
    missing = [name for name in ("traces", "student") if getattr(options, name) is None]
    if missing:
        raise SettingsError(
            f"init: {' and '.join(missing)} missing; write leadspan init TRACES --student MODEL [--teacher MODEL], or "
            "run it on a terminal, where it asks"
        )
