"""Check a recipe by running parts of it: models, data, loss, store, disk and memory."""

import argparse
from dataclasses import asdict

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, read_recipe

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, size of the sample."""
    add_recipe(parser)
    parser.add_argument("--examples", type=int, default=8, help="training examples the models are run over (8)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Run the checks, print them, and fail if one of them failed."""
    from leadspan.errors import RunError, SettingsError

    if options.examples < 2:
        raise SettingsError(f"--examples {options.examples}: give at least 2")
    recipe = read_recipe(options, ["data", "student", "teacher"])
    from rich.table import Table
    from rich.text import Text

    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    from leadspan.doctor.doctor import examine
    from leadspan.status import PlainConsole, StatusLine

    with StatusLine(PlainConsole(stderr=True)):
        checks = examine(recipe, options.examples)
    table = Table("check", "verdict", "figure", "remedy", show_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # a remedy is to be read whole, however narrow the terminal
    for check in checks:
        verdict = Text(check.verdict, style=_COLOURS[check.verdict])
        table.add_row(check.name, verdict, check.figure, check.remedy)
    console_beside(options.json).print(table)
    write_json([asdict(check) for check in checks], options.json)
    # By its exit code, so that a script can stop before it trains.
    failed = sum(check.verdict == "failed" for check in checks)
    if failed:
        raise RunError(f"{failed} of {len(checks)} checks failed; see their remedies in the table")
