"""Write the files of a generated world: traces to train on, held-out problems, a tokenizer."""

import argparse

from leadspan.cli.reading import add_recipe, check_kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """World, overrides."""
    add_recipe(parser, "YAML file of the world's sets of problems", "the file's", "WORLD")


def run(options: argparse.Namespace) -> None:
    """Write the world and show what was written."""
    check_kind(options.recipe, "world")
    from leadspan.settings import load_settings
    from leadspan.status import PlainConsole
    from leadspan.tables import Block, rich_table
    from leadspan.worlds.files import write_world
    from leadspan.worlds.settings import WorldFiles

    files = load_settings(WorldFiles, options.recipe, options.overrides)
    record = write_world(files)
    rows: list[tuple[str, ...]] = []
    for name, problem_set in record.sets.items():
        # Where traces first state their answer decides which cuts can work.
        settings, share = problem_set.settings, problem_set.first_answer
        after = "not in the chain of thought" if share is None else f"{share:.0%} of the chain of thought"
        rows.append((name, settings.world.kind, f"{settings.num_traces:,}", f"{settings.num_problems:,}", after))
    header = ("set", "world", "traces", "held out", "first answer after")
    console = PlainConsole()
    console.print(rich_table(Block(f"seed {record.seed}", header, tuple(rows), num_text=2)))
    console.print(f"world: {files.output}", highlight=False, soft_wrap=True)
