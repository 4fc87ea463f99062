"""Run the teacher once over the traces of a recipe, and store its targets for every later run."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, load_libraries, write_json
from leadspan.cli.reading import add_recipe, read_recipe

if TYPE_CHECKING:
    from leadspan.tables import Block
    from leadspan.teacher.estimate import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, dry run."""
    add_recipe(parser, "YAML recipe; its `capture` section says what is stored and where")
    parser.add_argument(
        "--dry-run", action="store_true", help="print size, time and the KL lost to each codec on a sample, and stop"
    )
    parser.add_argument("--sample", type=int, default=1024, help="positions of the sample of a dry run (1024)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Capture, or estimate size and time of the capture."""
    from leadspan.errors import SettingsError
    from leadspan.recipe import check_capture

    # One position has no standard error.
    if options.sample < 2:
        raise SettingsError(f"--sample {options.sample}: give at least 2 positions")
    recipe = read_recipe(options, ["data", "student", "teacher"] if options.dry_run else ["data", "teacher"])
    check_capture(recipe)
    # Imports of torch wait until the recipe is known to be valid.
    load_libraries()
    from leadspan.pipeline.capture import prepare_capture
    from leadspan.status import PlainConsole, StatusLine, report_status
    from leadspan.tables import rich_table
    from leadspan.teacher.capture import estimate_capture, load_teacher, run_capture
    from leadspan.training.process import process_state

    state = process_state()
    # Under torchrun every rank runs this command, and one of them prints.
    console = PlainConsole(stderr=True, quiet=not state.is_main_process)
    with StatusLine(console):
        report_status("preparing data")
        job = prepare_capture(recipe)
        if options.dry_run:
            report_status("measuring a sample")
            estimate = estimate_capture(job, load_teacher(job), options.sample)
            shown = rich_table(_block(estimate, estimate.positions_per_second * state.num_processes))
            codecs = [{**asdict(row), "codec": row.codec.model_dump(mode="json")} for row in estimate.codecs]
            values = {**asdict(estimate), "codecs": codecs}
        else:
            manifest = run_capture(job)
            values, size = manifest.model_dump(mode="json"), manifest.num_bytes
            each = size / max(1, manifest.num_positions)
            shown = (
                f"store: {job.directory}: {manifest.codec.label}, {manifest.num_sequences:,} sequences, "
                f"{manifest.num_positions:,} positions, {size:,} bytes ({each:.1f} a position)"
            )
    if state.is_main_process:
        console_beside(options.json).print(shown, soft_wrap=isinstance(shown, str), highlight=False)
        write_json(values, options.json)


def _block(estimate: "Estimate", speed: float) -> "Block":
    """Size and KL lost of each codec, at `speed` positions a second of all ranks."""
    from leadspan.status import duration
    from leadspan.tables import Block

    title = (
        f"{estimate.num_sequences:,} sequences, {estimate.num_positions:,} positions; about "
        f"{duration(estimate.num_positions / speed)} at {speed:,.0f} tokens/s with {estimate.codecs[0].codec.label}"
    )
    note = (
        f"KL lost: of {estimate.kl:.4g} nats per position between teacher and untrained student, at temperature 1, on "
        f"{estimate.sample_positions:,} positions; ± one standard error. The first codec is capture.codec."
    )
    rows = tuple(
        (
            row.codec.label,
            f"{row.support:,.1f}",
            f"{row.bytes_per_position:,.1f}",
            f"{row.num_bytes / 1e9:,.3g} GB",
            f"{row.kl_lost:.2g} ± {row.standard_error:.1g}",
        )
        for row in estimate.codecs
    )
    return Block(title, ("codec", "entries", "bytes a position", "store", "KL lost"), rows, note)
