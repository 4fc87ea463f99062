"""Show on real records what a recipe keeps and weighs, before any training."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, number of records."""
    parser.add_argument("recipe", type=Path, help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument("--records", type=int, default=2, help="training records to show (2)")
    parser.add_argument("--chars", type=int, default=400, help="characters shown of a long run (400); 0 shows all")


def run(options: argparse.Namespace) -> None:
    """Prepare the data of the recipe and print it."""
    from rich.console import Console

    from leadspan.cli.show import counts_table, legend, record_panel
    from leadspan.inputs import prepare_data
    from leadspan.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    data = prepare_data(recipe)
    console = Console()
    console.print(legend())
    for index in range(min(options.records, len(data.examples))):
        console.print(record_panel(data.examples, index, data.renderer.tokenizer, options.chars))
    console.print(counts_table(recipe.cut.label, data.examples.counts, data.splits.left_out))
