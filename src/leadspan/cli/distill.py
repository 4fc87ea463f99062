"""Train a student from a recipe, evaluate it, and write a run directory."""

import argparse
from pathlib import Path

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, read_recipe
from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, resume, dry run."""
    add_recipe(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last complete checkpoint")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe, the files it names and the chat template, print it, and stop",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Resolve the recipe, then train or print it."""
    from leadspan.errors import SettingsError
    from leadspan.settings import dump_yaml

    if options.dry_run and options.json is not None:
        raise SettingsError("--json: a dry run prints the recipe and measures nothing; leave one of the two out")
    # A dry run is for machines without a network too.
    recipe = read_recipe(options, must_answer=not options.dry_run)
    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    if options.dry_run:
        from leadspan.costs.memory import disk_bytes
        from leadspan.errors import ModelError
        from leadspan.inputs import check_renderings
        from leadspan.planning.prediction import student_shape
        from leadspan.planning.tables import disk_of_run

        check_renderings([recipe])
        print_plain(dump_yaml(recipe).rstrip("\n"))
        try:
            disk = disk_of_run(disk_bytes(student_shape(recipe)))
        except ModelError as error:  # such as a config behind a network that is not there
            disk = f"Disk: not known: {error}"
        print_plain("".join(f"# {line}\n" for line in disk.splitlines()).rstrip("\n"))  # what is printed stays a recipe
        return
    from leadspan.pipeline.run import run as run_recipe
    from leadspan.report.summary import run_summary
    from leadspan.status import PlainConsole, StatusLine
    from leadspan.tables import rich_table
    from leadspan.training.process import process_state

    state = process_state()
    # Under torchrun every rank runs this command, and one of them prints.
    console = PlainConsole(stderr=True, quiet=not state.is_main_process)
    with StatusLine(console):
        result = run_recipe(recipe, options.resume)
    if state.is_main_process:
        console = console_beside(options.json)
        console.print(rich_table(run_summary(result)))
        directory = f"run directory: {recipe.output}{_checkpoints_in(recipe.output)}"
        console.print(directory, highlight=False, soft_wrap=True)
        write_json(result.model_dump(mode="json"), options.json)


def _checkpoints_in(directory: Path) -> str:
    """What the checkpoints of a finished run take on disk, and how to be rid of them; "" where there are none."""
    from leadspan.tables import quantity
    from leadspan.training.result import CHECKPOINTS_DIR

    checkpoints = directory / CHECKPOINTS_DIR
    num_bytes = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file())
    if not num_bytes:
        return ""
    size = quantity("peak_memory_bytes", num_bytes)
    return f", of which {checkpoints} takes {size}; training.keep_checkpoints=false leaves none behind a finished run"
