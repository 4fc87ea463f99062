"""Audit traces before training: lengths, first answers, the predicted break point, losses per cut, duplicates."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadspan.audit.config import AuditSettings
    from leadspan.audit.findings import AuditResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe or traces, overrides, tokenizer, tasks, output."""
    parser.add_argument("data", metavar="DATA", help="YAML recipe; or trace file, directory of them, or Hub name")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="settings that replace the recipe's, or the data's defaults",
    )
    parser.add_argument("--tokenizer", help="tokenizer that counts the tokens (needed for traces without a recipe)")
    parser.add_argument(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="FILE",
        help="further task to look for among prompts",
    )
    parser.add_argument("--limit", type=int, help="read at most this many records")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--workers", type=int, help="processes (one per processor, at most 8)")
    parser.add_argument(
        "--set",
        dest="thresholds",
        action="append",
        default=[],
        metavar="key=value",
        help="a threshold: near_duplicate=0.7, ngram_words=8, loop_repeats=3, policies.0.p=0.4",
    )


def run(options: argparse.Namespace) -> None:
    """Resolve the settings, audit, print the page, write the JSON."""
    import os

    from rich.console import Console

    from leadspan.audit.audit import run_audit
    from leadspan.audit.findings import save_audit
    from leadspan.errors import SettingsError
    from leadspan.study.progress import Progress

    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: must be at least 1")
    workers = options.workers or min(8, os.cpu_count() or 1)
    with Progress(Console(stderr=True)) as progress:
        result = run_audit(_settings(options), workers, progress)
    _print(result, Console())
    if options.json is not None:
        print(f"figures: {save_audit(result, options.json)}")


def _settings(options: argparse.Namespace) -> "AuditSettings":
    """What is to be audited, from a recipe or from options alone."""
    from leadspan.audit.config import AuditSettings
    from leadspan.errors import SettingsError
    from leadspan.settings import apply_overrides, validate

    if Path(options.data).suffix.lower() in (".yaml", ".yml"):
        values = _from_recipe(options)
    elif options.tokenizer is None:
        raise SettingsError(
            f"{options.data}: traces alone have no tokenizer to count tokens with; add --tokenizer PATH_OR_HUB_NAME "
            "(the student's), or audit a recipe (a .yaml file)"
        )
    else:
        values = {"data": {"train": {"path": options.data}}, "tokenizer": options.tokenizer}
        apply_overrides(values, options.overrides)
    if options.limit is not None:
        values["data"]["train"]["limit"] = options.limit
    known = [task["name"] for task in values.get("tasks", [])]
    values["tasks"] = values.get("tasks", []) + [_task(path, known) for path in options.tasks]
    apply_overrides(values, options.thresholds)
    return validate(AuditSettings, values, "audit")


def _from_recipe(options: argparse.Namespace) -> dict[str, Any]:  # Any: nested plain values
    from leadspan.recipe import load_recipe

    recipe = load_recipe(Path(options.data), options.overrides)
    return {
        "data": recipe.data.model_dump(mode="json"),
        "tokenizer": options.tokenizer or recipe.tokenizer_path,
        "revision": None if options.tokenizer else recipe.tokenizer_revision,
        "cut": recipe.cut.model_dump(mode="json"),
        "supervision": recipe.supervision.model_dump(mode="json"),
        "tasks": [task.model_dump(mode="json") for task in recipe.evaluation.tasks],
        "seed": recipe.seed,
    }


def _task(path: str, known: list[str]) -> dict[str, str]:
    """A task named after its file; a number tells it from others of that name."""
    stem = "".join(char if char.isalnum() or char in "_-. " else "-" for char in Path(path).stem) or "task"
    name = next(n for i in range(1, len(known) + 2) if (n := stem if i == 1 else f"{stem}-{i}") not in known)
    known.append(name)
    return {"name": name, "path": path}


def _print(result: "AuditResult", console: Any) -> None:  # Any: rich is imported when the command runs
    """One page of tables."""
    from rich.table import Table

    from leadspan.audit.rows import blocks

    console.print(f"{result.source}, tokens of {result.tokenizer}", highlight=False)
    for block in blocks(result):
        table = Table(
            title=block.title, title_justify="left", title_style="bold", caption=block.note or None,
            caption_justify="left", show_edge=False, show_header=bool(block.header), box=None, pad_edge=False,
        )  # fmt: skip
        for i in range(len(block.rows[0])):
            is_name = i == 0 or not block.header
            table.add_column(block.header[i] if block.header else "", justify="left" if is_name else "right")
        for row in block.rows:
            table.add_row(*row)
        console.print(table, highlight=False)
