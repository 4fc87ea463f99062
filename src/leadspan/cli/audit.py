"""Audit traces before training: lengths, first answers, the predicted break point, losses per cut, duplicates."""

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, add_set, console_beside, load_libraries, write_json

if TYPE_CHECKING:
    from leadspan.audit.settings import AuditSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe or traces, overrides, tokenizer, tasks, output."""
    parser.add_argument(
        "data", metavar="DATA", help="YAML recipe; or trace file, directory of trace files, or Hub name"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.sub=value",
        help="settings that replace those of the recipe, or the defaults for the data",
    )
    parser.add_argument("--tokenizer", help="tokenizer that counts the tokens (needed for traces without a recipe)")
    parser.add_argument(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="FILE",
        help="further task whose problems are searched for among the prompts",
    )
    parser.add_argument("--limit", type=int, help="read at most this many records")
    add_json(parser)
    parser.add_argument("--workers", type=int, help="processes (one per processor, at most 8)")
    add_set(parser, "a threshold: near_duplicate=0.7, ngram_words=8, loop_repeats=3, policies.0.p=0.4", "thresholds")


def run(options: argparse.Namespace) -> None:
    """Resolve the settings, audit, print the page, write the JSON."""
    import os

    from leadspan.errors import SettingsError

    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: must be at least 1")
    workers = options.workers or min(8, os.cpu_count() or 1)
    settings = _settings(options)
    # Imports of torch wait until the settings are known to be valid.
    load_libraries()
    from leadspan.audit.audit import run_audit
    from leadspan.audit.rows import blocks
    from leadspan.status import PlainConsole, StatusLine
    from leadspan.tables import rich_table

    with StatusLine(PlainConsole(stderr=True)):
        result = run_audit(settings, workers)
    console = console_beside(options.json)
    console.print(f"{result.source}, tokens of {result.tokenizer}", highlight=False)
    for block in blocks(result):
        console.print(rich_table(block), highlight=False)
    write_json(result.model_dump(mode="json"), options.json)


def _settings(options: argparse.Namespace) -> "AuditSettings":
    """The settings of the audit, from a recipe or from options alone."""
    from leadspan.yaml_text import read_yaml_mapping

    is_recipe = Path(options.data).suffix.lower() in (".yaml", ".yml")
    if is_recipe:
        read_yaml_mapping(Path(options.data))  # a mistyped path is answered before the settings are imported
    from leadspan.audit.settings import AuditSettings
    from leadspan.errors import SettingsError
    from leadspan.settings import apply_overrides, validate
    from leadspan.sources import Source, check_sources

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
        values["data"]["train"]["limit"] = options.limit
    tasks = values.setdefault("tasks", [])
    for path in options.tasks:  # each is named after its file, with a number where the name is taken
        # A task's name becomes a file's, so only letters that every file system takes.
        stem = "".join(char if char.isalnum() or char in "_-. " else "-" for char in Path(path).stem) or "task"
        candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        taken = {task["name"] for task in tasks}
        tasks.append({"name": next(name for name in candidates if name not in taken), "path": path})
    apply_overrides(values, options.thresholds)
    settings = validate(AuditSettings, values, "audit")
    check_sources([*sources, *further], options.data)
    return settings
