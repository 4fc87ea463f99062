"""Check a recipe by running parts of it: models, data, loss, store, disk and memory."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.doctor.check_inputs import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, size of the sample."""
    parser.add_argument("recipe", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument("--examples", type=int, default=8, help="training examples the models are run over (8)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Run the checks, print them, and fail if one of them failed."""
    from leadspan.cli.reading import read_recipe
    from leadspan.errors import RunError, SettingsError

    if options.examples < 2:
        raise SettingsError(f"--examples {options.examples}: give at least 2")
    recipe = read_recipe(options, ["data", "student", "teacher"])
    from leadspan.doctor.doctor import examine
    from leadspan.status import PlainConsole, StatusLine

    with StatusLine(PlainConsole(stderr=True)):
        checks = examine(recipe, options.examples)
    console_beside(options.json).print(_table(checks))
    write_json([asdict(check) for check in checks], options.json)
    failed = sum(check.verdict == "failed" for check in checks)
    if failed:
        raise RunError(f"{failed} of {len(checks)} checks failed; see their remedies in the table")


def _table(checks: "list[Check]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    for name in ("check", "verdict", "figure", "remedy"):
        table.add_column(name, overflow="fold")
    for check in checks:
        colour = _COLOURS[check.verdict]
        table.add_row(check.name, Text(check.verdict, style=colour), check.figure, check.remedy)
    return table
