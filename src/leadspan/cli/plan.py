"""Predict tokens, FLOPs, memory, time and money of a recipe under several policies, before any training."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, policies, calibration, file."""
    parser.add_argument("recipe", type=Path, help="YAML recipe; its section `plan` names device and price")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
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
        help="measure the time: run a few real steps of the recipe's models and data on this machine, and keep the "
        "rates in plan.calibration, if it is set",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON too")


def run(options: argparse.Namespace) -> None:
    """Read the data and the models' configs, and print the tables."""
    import json

    from rich.console import Console

    from leadspan.inputs import first_answers_of, prepare_data
    from leadspan.recipe import load_recipe
    from leadspan.study.planning.plan import GRID, calibration_of, parse_policy, plan_recipe
    from leadspan.study.planning.tables import plan_tables
    from leadspan.study.progress import Progress

    recipe = load_recipe(options.recipe, options.overrides)
    policies = GRID if options.cut is None else [parse_policy(text) for text in options.cut]
    with Progress(Console(stderr=True)) as progress:
        progress("preparing data")
        data = prepare_data(recipe)
        calibration = calibration_of(recipe, data, policies, options.calibrate, progress)
        searched = None
        if recipe.plan.break_point_seconds:
            progress("looking for first answers")
            searched = first_answers_of(recipe, data)
        progress("counting")
        plan = plan_recipe(recipe, data, policies, calibration, searched)
    console = Console()
    for part in plan_tables(plan):
        console.print(part)
    if options.json is not None:
        options.json.write_text(json.dumps(plan.as_json(), indent=1) + "\n", encoding="utf-8")
        print(f"plan: {options.json}")
