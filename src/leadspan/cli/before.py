"""What is known of a recipe before it is trained: records, lengths and duplicates, predicted costs, checks."""

import argparse
import itertools
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.cli.options import (
    JSON,
    argument,
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
from leadspan.errors import RunError, SettingsError
from leadspan.sources import Source, check_sources
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.audit.settings import AuditSettings
    from leadspan.data.truncation import AnyPolicy
    from leadspan.recipe import Part

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


@command(
    *recipe_file(),
    argument("--records", type=int, default=2, help="training records to show (2)"),
    argument("--chars", type=int, default=400, help="characters shown of a long run (400); 0 shows all"),
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
    load_libraries()
    from leadspan.cli.first_look import counts_block, loss_panels, record_panels
    from leadspan.inputs import prepare_data
    from leadspan.traces.read import tags_warning

    with status_line("preparing data"):
        data = prepare_data(recipe)
    form = recipe.data.rendering
    if warning := tags_warning(recipe.data.train, (form.think_open, form.think_close)):
        print_plain(f"warning: {warning}", error=True)
    counts = {"counts": data.examples.counts.model_dump(mode="json"), "left_out": data.splits.left_out}
    if options.loss:
        show(loss_panels(recipe, data, student, options.records), counts, options.json)
        return
    has_styles = console_beside(options.json).color_system is not None
    panels = record_panels(data, options.records, options.chars, has_styles)
    show([*panels, counts_block(recipe.cut.label, data)], counts, options.json)


@command(
    local_or_hub("data", metavar="DATA", help="YAML recipe; or trace file, directory of trace files, or Hub name"),
    argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.sub=value",
        help="settings that replace those of the recipe, or the defaults for the data",
    ),
    local_or_hub("--tokenizer", help="tokenizer that counts the tokens (needed for traces without a recipe)"),
    local_or_hub(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="FILE",
        help="further task whose problems are searched for among the prompts",
    ),
    argument("--limit", type=int, help="read at most this many records"),
    JSON,
    argument("--workers", type=int, help="processes (one per processor, at most 8)"),
    setting("a threshold: near_duplicate=0.7, ngram_words=8, loop_repeats=3, policies.0.p=0.4", "thresholds"),
)
def audit(options: argparse.Namespace) -> None:
    """Audit traces before training: lengths, first answers, the predicted break point, losses per cut, duplicates."""
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: must be at least 1")
    workers = options.workers or min(8, os.cpu_count() or 1)
    settings = _settings(options)

    load_libraries()
    from leadspan.audit.audit import run_audit
    from leadspan.audit.rows import blocks

    with status_line():
        result = run_audit(settings, workers)
    title = f"{result.source}, tokens of {result.tokenizer}"
    show([title, *blocks(result)], result.model_dump(mode="json"), options.json)


def _settings(options: argparse.Namespace) -> "AuditSettings":
    """The settings of the audit, from a recipe or from options alone."""
    from leadspan.yaml_text import read_yaml_mapping

    is_recipe = Path(options.data).suffix.lower() in (".yaml", ".yml")
    if is_recipe:
        read_yaml_mapping(Path(options.data))  # a mistyped path is answered before the settings are imported
    from leadspan.audit.settings import AuditSettings
    from leadspan.evaluation.settings import task_name
    from leadspan.settings import apply_overrides, validate

    further = [Source("--task", path, "dataset") for path in options.tasks]
    further += [Source("--tokenizer", options.tokenizer, "model")] if options.tokenizer else []
    if is_recipe:
        from leadspan.recipe import load_recipe

        recipe = load_recipe(Path(options.data), options.overrides)
        values = {
            "data": recipe.data.model_dump(mode="json"),
            "tokenizer": options.tokenizer or recipe.tokenizer_path,
            "revision": None if options.tokenizer else recipe.tokenizer_revision,
            "cut": recipe.cut.model_dump(mode="json"),
            "supervision": recipe.supervision.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in recipe.evaluation.tasks],
            "seed": recipe.seed,
        }
        # The tokenizer of the command line stands in for the recipe's, which then need not exist.
        unused = ("tokenizer", "student.path") if options.tokenizer else ()
        sources = [source for source in recipe.sources(["data", "tasks"]) if source.key not in unused]
    elif options.tokenizer is None:
        raise SettingsError(
            f"{options.data}: traces alone have no tokenizer to count tokens with; add --tokenizer PATH_OR_HUB_NAME "
            "(the student's), or audit a recipe (a .yaml file)"
        )
    else:
        values = {"data": {"train": {"path": options.data}}, "tokenizer": options.tokenizer}
        sources = [Source("DATA", options.data, "dataset")]
        apply_overrides(values, options.overrides)
    if options.limit is not None:
        apply_overrides(values, [f"data.train.limit={options.limit}"])
    tasks = values.setdefault("tasks", [])
    # Each is named after its file, with a number where the name is taken.
    for path in options.tasks if isinstance(tasks, list) else ():  # else `validate` refuses them
        stem = task_name(path)
        candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        taken = {task.get("name") for task in tasks if isinstance(task, dict)}
        tasks.append({"name": next(name for name in candidates if name not in taken), "path": path})
    apply_overrides(values, options.thresholds)
    settings = validate(AuditSettings, values, "audit")
    check_sources([*sources, *further], options.data)
    return settings


def parse_policy(text: str) -> "AnyPolicy":
    """The policy of an option `--cut`, in YAML as a recipe's `cut`.

    Raises:
        SettingsError: It is none.
    """
    from leadspan.data.truncation import AnyPolicy
    from leadspan.settings import Settings, validate
    from leadspan.yaml_text import parse_yaml

    class OnePolicy(Settings):
        cut: AnyPolicy

    return validate(OnePolicy, {"cut": parse_yaml(text, f"--cut {text}")}, f"--cut {text}").cut


@command(
    *recipe_file("YAML recipe; its section `plan` names device and price"),
    argument(
        "--cut",
        action="append",
        metavar="POLICY",
        help="policy to compare with the recipe's own, as YAML: '{kind: lead, p: 0.3}'; may be repeated "
        "(full and lead 0.75, 0.5, 0.25, 0.1)",
    ),
    argument(
        "--calibrate",
        action="store_true",
        help="measure the time: run a few real steps of the recipe's models and data on this machine, and write the "
        "rates to plan.calibration, if it is set",
    ),
    JSON,
)
def plan(options: argparse.Namespace) -> None:
    """Predict tokens, FLOPs, memory, time and money of a recipe under several policies, before any training."""
    # With --calibrate the file of rates is written, so it need not exist.
    measured: list[Part] = [] if options.calibrate else ["calibration"]
    recipe = read_recipe(options, ["data", "student", "teacher", *measured])
    policies = [parse_policy(text) for text in options.cut or ()]
    load_libraries()
    from leadspan.inputs import first_answers_of, prepare_data
    from leadspan.planning.plan import GRID, calibration_of, plan_recipe
    from leadspan.planning.tables import plan_tables, sentences
    from leadspan.status import report_status

    policies = policies or GRID
    with status_line("preparing data"):
        data = prepare_data(recipe)
        calibration = calibration_of(recipe, data, policies, options.calibrate)
        searched = None
        if recipe.plan.break_point_seconds:
            report_status("looking for first answers")
            searched = first_answers_of(recipe, data)
        report_status("counting")
        plan = plan_recipe(recipe, data, policies, calibration, searched)
    show([*plan_tables(plan), *sentences(plan)], plan.as_json(), options.json)


@command(
    *recipe_file(),
    argument("--examples", type=int, default=8, help="training examples the models are run over (8)"),
    JSON,
)
def doctor(options: argparse.Namespace) -> None:
    """Check a recipe by running parts of it: models, data, loss, store, disk and memory."""
    if options.examples < 2:
        raise SettingsError(f"--examples {options.examples}: give at least 2")
    recipe = read_recipe(options, ["data", "student", "teacher"])
    from rich.table import Table
    from rich.text import Text

    load_libraries()
    from leadspan.doctor.doctor import examine

    with status_line():
        checks = examine(recipe, options.examples)
    table = Table("check", "verdict", "figure", "remedy", show_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # a remedy is to be read whole, however narrow the terminal
    for check in checks:
        verdict = Text(check.verdict, style=_COLOURS[check.verdict])
        table.add_row(check.name, verdict, check.figure, check.remedy)
    show([table], [asdict(check) for check in checks], options.json)
    # By its exit code, so that a script can stop before it trains.
    failed = sum(check.verdict == "failed" for check in checks)
    if failed:
        raise RunError(f"{failed} of {len(checks)} checks failed; see their remedies in the table")
