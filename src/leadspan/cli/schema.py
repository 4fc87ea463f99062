"""Print the JSON schema of recipes, studies or worlds, with which editors complete keys and mark faults."""

import argparse

_FILES = ("recipe", "study", "world")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file."""
    parser.add_argument("file", nargs="?", choices=_FILES, default="recipe", help="kind of file (recipe)")


def run(options: argparse.Namespace) -> None:
    """Print it on standard output."""
    import json

    from leadspan.recipe import Recipe
    from leadspan.settings import Settings, json_schema
    from leadspan.study.settings import Study
    from leadspan.worlds.settings import WorldFiles

    kinds: dict[str, type[Settings]] = dict(zip(_FILES, (Recipe, Study, WorldFiles), strict=True))
    print(json.dumps(json_schema(kinds[options.file]), indent=1))
