"""Predict tokens, FLOPs, memory, time and money of a recipe under several policies, before any training."""

import argparse
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, read_recipe

if TYPE_CHECKING:
    from leadspan.recipe import Part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, policies, calibration, file."""
    add_recipe(parser, "YAML recipe; its section `plan` names device and price")
    parser.add_argument(
        "--cut",
        action="append",
        metavar="POLICY",
        help="policy to compare with the recipe's own, as YAML: '{kind: lead, p: 0.3}'; may be repeated "
        "(full and lead 0.75, 0.5, 0.25, 0.1)",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure the time: run a few real steps of the recipe's models and data on this machine, and write the "
        "rates to plan.calibration, if it is set",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read the data and the models' configs, and print the tables."""
    # With --calibrate the file of rates is written, so it need not exist.
    measured: list[Part] = [] if options.calibrate else ["calibration"]
    recipe = read_recipe(options, ["data", "student", "teacher", *measured])
    from leadspan.planning.policies import parse_policy

    policies = [parse_policy(text) for text in options.cut or ()]
    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    from leadspan.inputs import first_answers_of, prepare_data
    from leadspan.planning.plan import GRID, calibration_of, plan_recipe
    from leadspan.planning.tables import plan_tables, sentences
    from leadspan.status import PlainConsole, StatusLine, report_status
    from leadspan.tables import rich_table

    policies = policies or GRID
    with StatusLine(PlainConsole(stderr=True)):
        report_status("preparing data")
        data = prepare_data(recipe)
        calibration = calibration_of(recipe, data, policies, options.calibrate)
        searched = None
        if recipe.plan.break_point_seconds:
            report_status("looking for first answers")
            searched = first_answers_of(recipe, data)
        report_status("counting")
        plan = plan_recipe(recipe, data, policies, calibration, searched)
    console = console_beside(options.json)
    for block in plan_tables(plan):
        console.print(rich_table(block))
    for sentence in sentences(plan):
        console.print(sentence, highlight=False, markup=False)
    write_json(plan.as_json(), options.json)
