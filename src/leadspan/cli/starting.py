"""What one starts with: the demo, recipes, a first look at records, worlds, and schemas of files."""

import argparse
import difflib
import itertools
import json
import re
import shlex
import string
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    argument,
    check_kind,
    check_tasks,
    command,
    console_beside,
    load_libraries,
    local_or_hub,
    read_model,
    read_recipe,
    recipe_file,
    setting,
    show,
    status_line,
)
from leadspan.errors import DataError, RunError, SettingsError
from leadspan.files import full_disk_reported, write_atomically
from leadspan.sources import Source, check_output, check_sources
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.study.record import StudyRecord

SCHEMA_FILE = "recipe.schema.json"
NUM_PROBLEMS = 100
# Large enough that the teacher solves every problem and the base one in ten; small enough for minutes on two cores.
SIZES = {
    "num_traces": 8000,
    "num_problems": 240,
    "teacher_steps": 1000,
    "student_steps": 400,
    "max_new_tokens": 200,  # no right answer is longer than 140
}
# The next commands, in the order in which to run them, with what each shows.
_STEPS = {
    "audit {}": "lengths, where answers first appear, what each cut loses",
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
RECIPES = Path(__file__).parents[1] / "recipes"
_FILES = ("recipe", "study", "world")


def run_demo(directory: Path, seed: int, **sizes: int) -> "StudyRecord":
    """Distil reasoning students on cut traces, from scratch, on a CPU, in minutes; continues an interrupted demo.

    It is a study of a generated world (`recipes/demo`): a teacher trained on long problems; a small base trained on
    short ones, so that it knows how to finish; then one student for each policy, distilled from the teacher on long
    traces. All are evaluated on the same held-out long problems. The demo prints only what it has measured. The
    directory is new or that of an interrupted demo; `sizes` replace those of `SIZES`.
    """
    from rich.text import Text

    from leadspan.report.content import build_report
    from leadspan.report.inputs import read_inputs
    from leadspan.report.write import print_report, write_report
    from leadspan.settings import load_settings
    from leadspan.status import PlainConsole
    from leadspan.study.settings import Study
    from leadspan.study.study import run_study
    from leadspan.worlds.files import WorldFiles, write_world

    console = PlainConsole()
    start = time.monotonic()
    study_file = write_recipes(directory, seed, **sizes)
    console.print(
        "The demo generates small derivations: a prompt of assignments, a chain of thought that derives and verifies "
        "line by line, and an answer. A teacher learns long problems from scratch, a base learns short ones, and then "
        "one student for each cut is distilled from the teacher. It takes 5 to 10 minutes on two free processors; if "
        f"it is stopped, the same command continues it. The recipes are in {study_file.parent}.\n",
        highlight=False,
    )
    write_world(load_settings(WorldFiles, study_file.with_name("world.yaml"), []))
    record = run_study(load_settings(Study, study_file, []), study_file, console)
    report = build_report(read_inputs([directory]), "leadspan demo: what each cut kept, and what it cost")
    # An empty line between the study's board and the report.
    console.print()
    print_report(report, console)
    (path,) = write_report(report, directory / "report.html")
    # The report shows complete runs alone.
    for trial in record.of_state("failed"):
        console.print(Text.assemble(("missing:", "red"), f" {trial.title}: {trial.message}"))
    took = f"\n{(time.monotonic() - start) / 60:.1f} minutes. Report: "
    console.print(Text.assemble(took, (str(path), "bold"), " (one file, opens in any browser)."))
    return record


def write_recipes(directory: Path, seed: int, **sizes: int) -> Path:
    """Write the recipes of the demo into a directory that is new, empty or of the same demo; returns the study's."""
    # The base gets another seed, so that its first weights are not the teacher's.
    quoted = json.dumps(str(directory), ensure_ascii=False)[1:-1]  # a path may hold what ends a string in YAML
    values = {"directory": quoted, "seed": seed, "base_seed": seed + 1, **SIZES, **sizes}
    recipes = {
        directory / "recipes" / path.name: string.Template(path.read_text(encoding="utf-8")).substitute(values)
        for path in sorted((RECIPES / "demo").glob("*.yaml"))
    }
    # An interrupted demo is continued only where every recipe is the same: other numbers would be another demo.
    # What a kill may have left while they were written: some of them, and a hidden file.
    ours = {directory / "recipes", *recipes}
    is_new = all(path in ours or path.match("recipes/.*.tmp") for path in directory.rglob("*"))
    for path, text in recipes.items():
        if path.read_text(encoding="utf-8") != text if path.exists() else not is_new:
            fault = "it is not empty, and holds no demo of this seed; remove it, or give another"
            raise RunError(f"--output {directory}: {fault}")
    for path, text in recipes.items():
        write_atomically(path, text)
    return directory / "recipes" / "study.yaml"


@command(
    argument("--output", type=Path, default=Path("runs/demo"), help="directory of the demo (runs/demo)"),
    argument("--seed", type=int, default=0, help="seed of world, weights and order (0)"),
)
def demo(options: argparse.Namespace) -> None:
    """Train a teacher, a base model and six students on this machine, and show the retention of each cut."""
    run_demo(options.output, options.seed)


@command(
    local_or_hub(
        "traces", nargs="?", help="trace file, directory of trace files, or Hub data set; asked for if absent"
    ),
    local_or_hub("--student", help="directory, Hub name or GGUF file of the model to train"),
    local_or_hub("--teacher", help="directory, Hub name or GGUF file of the model to imitate; optional"),
    local_or_hub("--task", help="known benchmark, BENCHMARK=FILE, or file of problems (gsm8k)"),
    setting("where traces differ from the usual: columns.cot=solution, think_open='<reasoning>', split=train"),
    argument("--name", help="name of the run (that of the recipe's file)"),
    argument("--output", type=Path, default=Path("recipe.yaml"), help="recipe to write (recipe.yaml)"),
    argument("--force", action="store_true", help="replace an existing recipe"),
)
def init(options: argparse.Namespace) -> None:
    """Write a commented recipe for your own traces and models, after a look at them."""
    from leadspan.evaluation.settings import TaskSettings, task_values
    from leadspan.models.settings import pretrained_at
    from leadspan.recipe import Recipe, load_recipe
    from leadspan.settings import apply_overrides, json_schema, validate
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
    values: dict[str, Any] = {"path": options.traces}
    apply_overrides(values, options.overrides)
    source = validate(TraceSource, values, "settings")
    try:
        check_layout(source)
    except DataError as error:
        raise DataError(f"{error} `init` takes them as --set columns.cot=NAME or --set format=NAME.") from None

    load_libraries("leadspan.cli.first_look")
    from leadspan.cli.first_look import recipe_text

    with status_line(f"looking at {options.traces} and {options.student}"):
        teacher = pretrained_at(options.teacher) if options.teacher else None
        name = options.name or options.output.stem
        text = recipe_text(source, pretrained_at(options.student), teacher, task, name, SCHEMA_FILE)
    schema = options.output.with_name(SCHEMA_FILE)
    write_atomically(schema, json.dumps(json_schema(Recipe), indent=1) + "\n")
    write_atomically(options.output, text)  # last, since it is what the command asks not to be there
    load_recipe(options.output)  # a recipe that is written is valid, or the command fails here
    print_plain(f"wrote {options.output}, and {schema} for editors; then")
    # Quoted, since they are copied into a shell.
    path, name = shlex.quote(str(options.output)), shlex.quote(name)
    steps = {f"leadspan {step.format(path, name=name)}": meaning for step, meaning in _STEPS.items()}
    width = max(map(len, steps))
    print_plain("\n".join(f"  {step:<{width}}  # {meaning}" for step, meaning in steps.items()))


def _ask(options: argparse.Namespace) -> None:
    """Ask on a terminal for missing options; elsewhere refuse to run without the required ones."""
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


@command(
    *recipe_file(),
    argument("--records", type=int, default=2, help="training records to show (2)"),
    argument("--chars", type=int, default=400, help="characters shown of a long passage (400); 0 shows all"),
    argument("--loss", action="store_true", help="show the loss of every token of the uncut records"),
    local_or_hub("--model", metavar="RUN", help="run or model that computes the loss (the recipe's student)"),
    JSON,
)
def preview(options: argparse.Namespace) -> None:
    """Show on real records what a recipe keeps and how it weighs it, before any training."""
    if options.records < 0 or options.chars < 0:
        raise SettingsError(f"--records {options.records} --chars {options.chars}: give numbers from 0 upwards")
    recipe = read_recipe(options, ["data", "student"] if options.loss else ["data"])
    student = read_model(options.model).model if options.model else recipe.student
    load_libraries("leadspan.cli.first_look")
    from leadspan.cli.first_look import loss_panels, record_panels
    from leadspan.inputs import prepare_data
    from leadspan.tables import Block, percent
    from leadspan.traces.read import tags_warning

    with status_line("preparing data"):
        data = prepare_data(recipe)
    form = recipe.data.rendering
    if warning := tags_warning(recipe.data.train, (form.think_open, form.think_close)):
        print_plain(f"warning: {warning}", error=True)
    has_styles = console_beside(options.json).color_system is not None
    counts, rows = data.examples.counts, list[tuple[str, ...]]()
    values = {"counts": counts.model_dump(mode="json"), "left_out": data.splits.left_out}
    if options.loss:
        show(loss_panels(recipe, data, student, options.records, has_styles), values, options.json)
        return
    before, after = counts.section_tokens_before, counts.section_tokens_after
    tokens = {name: (before.get(name, 0), after.get(name, 0)) for name in {**before, **after}}
    for name, (old, new) in {**tokens, "all": (counts.tokens_before, counts.tokens_after)}.items():
        rows.append((f"{name} tokens", f"{old:,}", f"{new:,}", percent(new / old, 1) if old else ""))
    rows.append(("weighted positions", "", f"{counts.weighted_tokens:,}", ""))
    for name in ("lost_question", "lost_think_end", "lost_answer", "lost_stop"):
        lost = getattr(counts, name)
        share = percent(lost / counts.num_kept, 1) if counts.num_kept else ""
        words = name.replace("_", " ").replace("think end", "end of thinking")
        rows.append((words, "", f"{lost:,} examples", share))
    if counts.without_steps:
        share = percent(counts.without_steps / counts.num_examples, 1)
        rows.append(("chain of thought is one step", "", f"{counts.without_steps:,} examples", share))
    for reason, number in {**counts.dropped, **data.splits.left_out}.items():
        rows.append((f"left out: {reason}", "", f"{number:,} examples", ""))
    title = f"{recipe.cut.label} on {counts.num_examples} training examples"
    panels = record_panels(data, options.records, options.chars, has_styles)
    show([*panels, Block(title, ("", "before", "after", "kept"), tuple(rows))], values, options.json)


@command(
    argument("name", nargs="?", metavar="NAME", help="recipe to print or copy; all are listed if absent"),
    argument("--output", type=Path, metavar="DIR", help="directory to copy it to, with the recipes it names"),
)
def recipes(options: argparse.Namespace) -> None:
    """List the recipes that come with leadspan, print one, or copy it with the recipes that it names."""
    # The recipes below a folder belong to commands (init, demo), and are not for copying.
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))}
    if options.name is None:
        if options.output is not None:
            raise SettingsError("recipes: --output needs the NAME of a recipe")
        width = max(map(len, texts))
        for name, text in texts.items():
            # The first sentence of the comment on top; a schema for editors is no part of it.
            first = itertools.takewhile(re.compile(r"# \S").match, text.splitlines()[:2])
            comment = " ".join(line.removeprefix("# ") for line in first)
            print_plain(f"{name:<{width}}  {re.split(r'[.:](?= [A-Z]|$)', comment)[0]}")
        return
    name = options.name.removesuffix(".yaml")
    if name not in texts:
        near = difflib.get_close_matches(name, texts, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(texts)}"
        raise SettingsError(f"recipes: there is no recipe {options.name!r}; {hint}")
    if options.output is None:
        print_plain(texts[name].rstrip("\n"))
        return
    names = [name]
    for each in names:  # grows while the loop runs: a recipe may name others, and they further ones
        mentioned = dict.fromkeys(re.findall(r"(\w+)\.yaml", texts[each]))
        names += [recipe for recipe in mentioned if recipe in texts and recipe not in names]
    copies = {options.output / f"{each}.yaml": texts[each] for each in names}
    for path, text in copies.items():
        # All are checked before the first is written.
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SettingsError(f"{path}: exists already, with other content; give another --output")
    for path, text in copies.items():
        write_atomically(path, text)
        print_plain(f"wrote {path}")


@command(*recipe_file("YAML file of the world's sets of problems", "the file's", "WORLD"))
def world(options: argparse.Namespace) -> None:
    """Write the files of a generated world: traces to train on, held-out problems, a tokenizer."""
    check_kind(options.recipe, "world")
    from leadspan.settings import load_settings
    from leadspan.tables import Block, percent
    from leadspan.worlds.files import WorldFiles, write_world

    files = load_settings(WorldFiles, options.recipe, options.overrides)
    with full_disk_reported(files.output):
        record = write_world(files)
    rows: list[tuple[str, ...]] = []
    for name, problem_set in record.sets.items():
        # Where traces first state their answer decides which cuts can work.
        settings, share = problem_set.settings, problem_set.first_answer
        after = "never" if share is None else f"{percent(share)} of it"
        rows.append((name, settings.world.kind, f"{settings.num_traces:,}", f"{settings.num_problems:,}", after))
    header = ("set", "world", "traces", "held out", "chain of thought before the answer")
    block = Block(f"seed {record.seed}", header, tuple(rows), num_text=2)
    show([block, f"world: {files.output}"], None, None, long_lines=True)


@command(argument("file", nargs="?", choices=_FILES, default="recipe", help="kind of file (recipe)"))
def schema(options: argparse.Namespace) -> None:
    """Print the JSON schema of recipes, studies or worlds, with which editors complete keys and mark faults."""
    from leadspan.recipe import Recipe
    from leadspan.settings import Settings, json_schema
    from leadspan.study.settings import Study
    from leadspan.worlds.files import WorldFiles

    kinds: dict[str, type[Settings]] = dict(zip(_FILES, (Recipe, Study, WorldFiles), strict=True))
    print(json.dumps(json_schema(kinds[options.file]), indent=1))
