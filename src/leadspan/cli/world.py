"""Write the files of a generated world: traces to train on, held-out problems, a tokenizer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.worlds.files import WorldRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """World, overrides."""
    parser.add_argument("recipe", type=Path, metavar="WORLD", help="YAML file of the world's sets of problems")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")


def run(options: argparse.Namespace) -> None:
    """Write the world and show what was written."""
    from leadspan.settings import load_settings
    from leadspan.status import PlainConsole
    from leadspan.worlds.files import write_world
    from leadspan.worlds.settings import WorldFiles

    files = load_settings(WorldFiles, options.recipe, options.overrides)
    console = PlainConsole()
    console.print(_table(write_world(files)))
    console.print(f"world: {files.output}", highlight=False, soft_wrap=True)


def _table(record: "WorldRecord") -> "Table":
    from rich.table import Table

    table = Table(title=f"seed {record.seed}", title_justify="left", show_edge=False)
    for name in ("set", "world", "traces", "held out", "first answer after"):
        table.add_column(name, justify="left" if name in ("set", "world") else "right")
    for name, problem_set in record.sets.items():
        settings, share = problem_set.settings, problem_set.first_answer
        numbers = (f"{settings.num_traces:,}", f"{settings.num_problems:,}")
        after = "not in the chain of thought" if share is None else f"{share:.0%} of the chain of thought"
        table.add_row(name, settings.world.kind, *numbers, after)
    return table
