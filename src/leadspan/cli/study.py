"""Run a study: one recipe varied along axes, over seeds, with its controls; complete trials are skipped."""

import argparse
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, check_kind

if TYPE_CHECKING:
    from pathlib import Path

    from leadspan.study.record import StudyRecord
    from leadspan.study.settings import Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Study, overrides, dry run."""
    add_recipe(parser, "YAML file of the study", "the study's", "STUDY")
    parser.add_argument("--dry-run", action="store_true", help="list trials and controls with their state, and stop")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Plan the study, then list it or run it; failed trials are an error at the end."""
    from leadspan.errors import RunError

    check_kind(options.recipe, "study")
    from leadspan.settings import load_settings
    from leadspan.sources import check_output
    from leadspan.study.settings import Study

    study = load_settings(Study, options.recipe, options.overrides)
    check_output("output", study.output)
    check_kind(options.recipe.parent / study.recipe, "recipe")
    # Imports of torch wait until the study and the file of its recipe are known to be valid.
    load_libraries()
    from leadspan.study.board import trials_block
    from leadspan.study.study import run_study
    from leadspan.tables import rich_table

    console = console_beside(options.json)
    lines: list[str] = []
    if options.dry_run:
        record, lines = _planned(study, options.recipe)
    else:
        record = run_study(study, options.recipe, console)
        for capture in record.captures:
            positions = "" if capture.num_positions is None else f"; {capture.num_positions:,} positions"
            size = "" if capture.num_bytes is None else f", {capture.num_bytes / 1e9:,.3g} GB"
            took = "" if capture.seconds is None else f", captured once in {capture.seconds:,.0f} s"
            lines.append(f"{capture.name}: served {capture.num_trials} trials{positions}{size}{took}")
    failed = record.of_state("failed")
    lines += [f"not made: {note}" for note in record.notes]
    lines += [f"failed: {trial.title}: {trial.message}" for trial in failed]
    console.print(rich_table(trials_block(record)))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    write_json(record.model_dump(mode="json"), options.json)
    # After table and JSON: a failed trial does not hold back the results of the others.
    if failed and not options.dry_run:
        raise RunError(
            f"{len(failed)} of {len(record.trials)} trials failed, {failed[0].title} first; the same command tries "
            "them again and keeps what is complete"
        )
    if not options.dry_run:
        console.print(f"leadspan report {study.output}", highlight=False, soft_wrap=True)


def _planned(study: "Study", study_file: "Path") -> "tuple[StudyRecord, list[str]]":
    """The trials of a dry run with their state, and what they need: disk, and stores to capture."""
    from leadspan.inputs import check_renderings
    from leadspan.planning.tables import disk_of_study
    from leadspan.study.keeper import is_done, planned_record
    from leadspan.study.study import plan_study

    lines: list[str] = []
    plan = plan_study(study, study_file, is_dry_run=True)
    check_renderings(trial.recipe for trial in plan.trials)
    record = planned_record(study, plan)
    trials = [trial for trial in (*plan.before, *plan.trials) if trial.task == "distill" and not is_done(trial)]
    # A cluster may run all of them at once.
    at_once = study.executor.trials_at_once if study.executor.kind == "local" else len(trials)
    if disk := disk_of_study([trial.recipe for trial in trials], at_once, study.keep_checkpoints):
        lines.append(disk)
    for store in plan.stores:
        from leadspan.study.shared_stores import missing  # loads torch, for studies that have a store

        job = None if all(map(is_done, plan.readers(store))) else missing(store, draws=False)
        lines.append(f"{store.title}: serves {len(store.recipes)} trials; ")
        if job is None:
            lines[-1] += "nothing is to be captured"
            continue
        apart, positions = job.sequences.num_apart, sum(n - 1 for n in job.plan.lengths)
        whose = f", {apart:,} of them for cuts that change the context" if apart else ""
        if job.undrawn:
            number, most = len(job.undrawn), sum(job.undrawn)
            lines[-1] += f"{number:,} rollouts are to be drawn, at most {most:,} positions to capture; besides "
        lines[-1] += f"{len(job.sequences):,} sequences, {positions:,} positions are to be captured{whose}"
    return record, lines
