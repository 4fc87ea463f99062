"""Run a study: one recipe varied along axes, over seeds, with its controls; complete trials are skipped."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, write_json

if TYPE_CHECKING:
    from leadspan.study.record import CaptureRecord
    from leadspan.study.trials import SharedStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Study, overrides, dry run."""
    parser.add_argument("recipe", type=Path, metavar="STUDY", help="YAML file of the study")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the study's")
    parser.add_argument("--dry-run", action="store_true", help="list trials and controls with their state, and stop")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Plan the study, then list it or run it; failed trials are an error at the end."""
    from leadspan.errors import RunError
    from leadspan.settings import load_settings
    from leadspan.study.board import trials_block
    from leadspan.study.keeper import is_done, planned_record
    from leadspan.study.settings import Study
    from leadspan.study.study import plan_study, run_study
    from leadspan.tables import rich_table

    study = load_settings(Study, options.recipe, options.overrides)
    console = console_beside(options.json)
    if options.dry_run:
        plan = plan_study(study, options.recipe, is_dry_run=True)
        record = planned_record(study, plan)
        lines = [_to_capture(store, all(map(is_done, plan.readers(store)))) for store in plan.stores]
    else:
        record = run_study(study, options.recipe, console)
        lines = [_captured(capture) for capture in record.captures]
    console.print(rich_table(trials_block(record)))
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in record.notes:
        console.print(f"not made: {note}", highlight=False, markup=False, soft_wrap=True)
    for trial in record.of_state("failed"):
        console.print(f"failed: {trial.title}: {trial.message}", highlight=False, markup=False, soft_wrap=True)
    write_json(record.model_dump(mode="json"), options.json)
    failed = record.of_state("failed")
    if failed and not options.dry_run:
        raise RunError(
            f"{len(failed)} of {len(record.trials)} trials failed, {failed[0].title} first; the same command tries "
            "them again and keeps what is complete"
        )
    if not options.dry_run:
        console.print(f"leadspan report {study.output}", highlight=False, soft_wrap=True)


def _to_capture(store: "SharedStore", is_read: bool) -> str:
    from leadspan.study.shared_stores import missing

    job = None if is_read else missing(store)
    served = f"{store.title}: serves {len(store.recipes)} trials"
    if job is None:
        return f"{served}; nothing is to be captured"
    apart = job.sequences.num_apart
    positions = sum(n - 1 for n in job.plan.lengths)
    whose = f", {apart:,} of them for cuts that change the context" if apart else ""
    return f"{served}; {len(job.sequences):,} sequences, {positions:,} positions are to be captured{whose}"


def _captured(capture: "CaptureRecord") -> str:
    size = "" if capture.num_bytes is None else f", {capture.num_bytes / 1e9:,.3g} GB"
    took = "" if capture.seconds is None else f", captured once in {capture.seconds:,.0f} s"
    positions = "" if capture.num_positions is None else f"; {capture.num_positions:,} positions"
    return f"{capture.name}: served {capture.num_trials} trials{positions}{size}{took}"
