"""Run the teacher once over the traces of a recipe, and store its targets for every later run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.teacher.estimate import Estimate
    from leadspan.teacher.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, dry run."""
    parser.add_argument("recipe", type=Path, help="YAML recipe; its `capture` section says what is stored and where")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print size, time and the KL lost to each codec on a sample, and stop"
    )
    parser.add_argument("--sample", type=int, default=1024, help="positions of the sample of a dry run (1024)")


def run(options: argparse.Namespace) -> None:
    """Capture, or estimate what it would take."""
    from rich.console import Console

    from leadspan.errors import SettingsError
    from leadspan.recipe import load_recipe
    from leadspan.study.progress import Progress
    from leadspan.study.storing.capture import estimate_capture, load_teacher, run_capture
    from leadspan.study.storing.job import prepare_capture
    from leadspan.training.process import process_state

    recipe = load_recipe(options.recipe, options.overrides)
    if options.sample < 2:
        raise SettingsError(f"--sample {options.sample}: give at least 2 positions")
    state = process_state()
    console = Console(stderr=True, quiet=not state.is_main_process)
    with Progress(console) as progress:
        progress("preparing data")
        job = prepare_capture(recipe)
        if options.dry_run:
            progress("measuring a sample")
            found = estimate_capture(job, load_teacher(job), options.sample)
            shown = _table(found, found.positions_per_second * state.num_processes)
        else:
            shown = _summary(run_capture(job, progress), job.directory)
    if state.is_main_process:
        Console().print(shown, soft_wrap=isinstance(shown, str), highlight=False)


def _summary(manifest: "Manifest", directory: Path) -> str:
    size = sum(shard.num_bytes for shard in manifest.shards)
    return (
        f"store: {directory}: {manifest.codec.label}, {manifest.num_sequences:,} sequences, "
        f"{manifest.num_positions:,} positions, {size:,} bytes ({size / max(1, manifest.num_positions):.1f} a position)"
    )


def _table(found: "Estimate", speed: float) -> "Table":
    from rich.table import Table

    from leadspan.teacher.progress import duration

    left = duration(found.num_positions / speed)
    table = Table(
        title=f"{found.num_sequences:,} sequences, {found.num_positions:,} positions; "
        f"about {left} at {speed:,.0f} tokens/s with {found.codecs[0].codec.label}",
        caption=f"KL lost: of {found.kl:.4g} nats a position between teacher and student at its start, at temperature "
        f"1, on {found.sample_positions:,} positions; ± one standard error. The first codec is that of capture.codec.",
        title_justify="left",
        caption_justify="left",
        show_edge=False,
    )
    for name in ("codec", "entries", "bytes a position", "store", "KL lost"):
        table.add_column(name, justify="left" if name == "codec" else "right")
    for row in found.codecs:
        table.add_row(
            row.codec.label,
            f"{row.support:,.1f}",
            f"{row.bytes_per_position:,.1f}",
            f"{row.num_bytes / 1e9:,.3g} GB",
            f"{row.kl_lost:.2g} ± {row.standard_error:.1g}",
        )
    return table
