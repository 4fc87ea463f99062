"""Check a recipe by running parts of it: models, data, loss, store, disk and memory."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.study.checks.patient import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, size of the sample."""
    parser.add_argument("recipe", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument("--examples", type=int, default=8, help="training examples the models are run over (8)")


def run(options: argparse.Namespace) -> None:
    """Run the checks, print them, and fail if one of them failed."""
    from rich.console import Console

    from leadspan.errors import RunError, SettingsError
    from leadspan.recipe import load_recipe
    from leadspan.study.checks.doctor import examine
    from leadspan.study.progress import Progress

    recipe = load_recipe(options.recipe, options.overrides)
    if options.examples < 2:
        raise SettingsError(f"--examples {options.examples}: give at least 2")
    with Progress(Console(stderr=True)) as progress:
        checks = examine(recipe, options.examples, progress)
    Console().print(_table(checks))
    failed = sum(check.verdict == "failed" for check in checks)
    if failed:
        raise RunError(f"{failed} of {len(checks)} checks failed; the remedies stand beside them")


def _table(checks: "list[Check]") -> "Table":
    from rich.table import Table

    table = Table(show_edge=False)
    for name in ("check", "verdict", "figure", "remedy"):
        table.add_column(name, overflow="fold")
    for check in checks:
        colour = _COLOURS[check.verdict]
        table.add_row(check.name, f"[{colour}]{check.verdict}[/{colour}]", check.figure, check.remedy)
    return table
