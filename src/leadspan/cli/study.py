"""Run a study: one recipe varied along axes, over seeds, beside its controls; what is complete is skipped."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Study, overrides, dry run."""
    parser.add_argument("recipe", type=Path, metavar="STUDY", help="YAML file of the study")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the study's")
    parser.add_argument("--dry-run", action="store_true", help="list the trials, controls and what is done, and stop")


def run(options: argparse.Namespace) -> None:
    """Plan the study, then list it or run it; failed trials are an error at the end."""
    from rich.console import Console

    from leadspan.errors import RunError
    from leadspan.settings import load_settings
    from leadspan.study.board import trials_table
    from leadspan.study.config import Study
    from leadspan.study.study import plan_study, planned_record, run_study

    study = load_settings(Study, options.recipe, options.overrides)
    console = Console()
    if options.dry_run:
        record = planned_record(study, plan_study(study, options.recipe))
    else:
        record = run_study(study, options.recipe, console)
    console.print(trials_table(record))
    for note in record.notes:
        console.print(f"not made: {note}", highlight=False, markup=False, soft_wrap=True)
    for trial in record.of_state("failed"):
        console.print(f"failed: {trial.title}: {trial.message}", highlight=False, markup=False, soft_wrap=True)
    failed = record.of_state("failed")
    if failed and not options.dry_run:
        raise RunError(
            f"{len(failed)} of {len(record.trials)} trials failed, {failed[0].title} first; the same command tries "
            "them again and keeps what is complete"
        )
    if not options.dry_run:
        console.print(f"leadspan report {study.output}", highlight=False, soft_wrap=True)
