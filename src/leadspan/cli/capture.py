"""Run the teacher once over the traces of a recipe, and store its targets for every later run."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.output import add_json, console_beside, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.teacher.estimate import CodecEstimate, Estimate
    from leadspan.teacher.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, dry run."""
    parser.add_argument("recipe", type=Path, help="YAML recipe; its `capture` section says what is stored and where")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print size, time and the KL lost to each codec on a sample, and stop"
    )
    parser.add_argument("--sample", type=int, default=1024, help="positions of the sample of a dry run (1024)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Capture, or estimate size and time of the capture."""
    from leadspan.cli.reading import read_recipe
    from leadspan.errors import SettingsError

    if options.sample < 2:
        raise SettingsError(f"--sample {options.sample}: give at least 2 positions")
    recipe = read_recipe(options, ["data", "student", "teacher"] if options.dry_run else ["data", "teacher"])
    from leadspan.pipeline.capture import prepare_capture
    from leadspan.status import PlainConsole, StatusLine, report_status
    from leadspan.teacher.capture import estimate_capture, load_teacher, run_capture
    from leadspan.training.process import process_state

    state = process_state()
    console = PlainConsole(stderr=True, quiet=not state.is_main_process)
    with StatusLine(console):
        report_status("preparing data")
        job = prepare_capture(recipe)
        if options.dry_run:
            report_status("measuring a sample")
            estimate = estimate_capture(job, load_teacher(job), options.sample)
            shown = _table(estimate, estimate.positions_per_second * state.num_processes)
            values = {**asdict(estimate), "codecs": [_as_json(row) for row in estimate.codecs]}
        else:
            manifest = run_capture(job)
            shown, values = _summary(manifest, job.directory), manifest.model_dump(mode="json")
    if state.is_main_process:
        console_beside(options.json).print(shown, soft_wrap=isinstance(shown, str), highlight=False)
        write_json(values, options.json)


def _as_json(row: "CodecEstimate") -> dict[str, Any]:
    return {**asdict(row), "codec": row.codec.model_dump(mode="json")}


def _summary(manifest: "Manifest", directory: Path | None) -> str:
    size = sum(shard.num_bytes for shard in manifest.shards)
    return (
        f"store: {directory}: {manifest.codec.label}, {manifest.num_sequences:,} sequences, "
        f"{manifest.num_positions:,} positions, {size:,} bytes ({size / max(1, manifest.num_positions):.1f} a position)"
    )


def _table(estimate: "Estimate", speed: float) -> "Table":
    from rich.table import Table

    from leadspan.status import duration

    remaining = duration(estimate.num_positions / speed)
    table = Table(
        title=f"{estimate.num_sequences:,} sequences, {estimate.num_positions:,} positions; "
        f"about {remaining} at {speed:,.0f} tokens/s with {estimate.codecs[0].codec.label}",
        caption=f"KL lost: of {estimate.kl:.4g} nats per position between teacher and untrained student, at "
        f"temperature 1, on {estimate.sample_positions:,} positions; ± one standard error. The first codec is "
        "capture.codec.",
        title_justify="left",
        caption_justify="left",
        show_edge=False,
    )
    for name in ("codec", "entries", "bytes a position", "store", "KL lost"):
        table.add_column(name, justify="left" if name == "codec" else "right")
    for row in estimate.codecs:
        table.add_row(
            row.codec.label,
            f"{row.support:,.1f}",
            f"{row.bytes_per_position:,.1f}",
            f"{row.num_bytes / 1e9:,.3g} GB",
            f"{row.kl_lost:.2g} ± {row.standard_error:.1g}",
        )
    return table
