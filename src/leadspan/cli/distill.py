"""Train a student from a recipe, evaluate it, and write a run directory."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, resume, dry run."""
    parser.add_argument("recipe", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")


def run(options: argparse.Namespace) -> None:
    """Resolve the recipe, then train or print it."""
    from leadspan.recipe import load_recipe
    from leadspan.settings import dump_yaml

    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        print(dump_yaml(recipe), end="")
        return
    from rich.console import Console

    from leadspan.pipeline import run as run_recipe
    from leadspan.study.compare.summary import run_summary
    from leadspan.study.progress import Progress
    from leadspan.training.process import process_state

    state = process_state()
    console = Console(stderr=True, quiet=not state.is_main_process)
    with Progress(console) as progress:
        result = run_recipe(recipe, options.resume, progress)
    if state.is_main_process:
        Console().print(run_summary(result))
        print(f"run directory: {recipe.output}")
