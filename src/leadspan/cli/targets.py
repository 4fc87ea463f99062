"""The targets of a teacher: captured once, shown, checked and joined."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    argument,
    command,
    console_beside,
    load_libraries,
    read_recipe,
    recipe_file,
    status_line,
    write_json,
)
from leadspan.errors import SettingsError
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.tables import Block
    from leadspan.teacher.estimate import Estimate


@command(
    "Run the teacher once over the traces of a recipe, and store its targets for every later run.",
    *recipe_file("YAML recipe; its `capture` section says what is stored and where"),
    argument(
        "--dry-run", action="store_true", help="print size, time and the KL lost to each codec on a sample, and stop"
    ),
    argument("--sample", type=int, default=1024, help="positions of the sample of a dry run (1024)"),
    JSON,
)
def capture(options: argparse.Namespace) -> None:
    """Capture, or estimate size and time of the capture."""
    from leadspan.recipe import check_capture

    # One position has no standard error.
    if options.sample < 2:
        raise SettingsError(f"--sample {options.sample}: give at least 2 positions")
    recipe = read_recipe(options, ["data", "student", "teacher"] if options.dry_run else ["data", "teacher"])
    check_capture(recipe)
    load_libraries()
    from leadspan.pipeline.capture import prepare_capture
    from leadspan.status import report_status
    from leadspan.tables import rich_table
    from leadspan.teacher.capture import estimate_capture, load_teacher, run_capture
    from leadspan.training.process import process_state

    state = process_state()
    with status_line():
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


@command(
    "Show, check or join stores of teacher targets.",
    argument(
        "action",
        choices=("inspect", "verify", "merge"),
        help="inspect: print the manifest of a store; verify: check every file, row and hash; "
        "merge: join stores of one teacher and codec",
    ),
    argument("stores", nargs="+", type=Path, metavar="STORE", help="directory of a store"),
    argument("--output", type=Path, help="directory of the joined store (merge)"),
    JSON,
)
def store(options: argparse.Namespace) -> None:
    """Inspect, verify or merge."""
    from leadspan.tables import Block, rich_table
    from leadspan.teacher.manifest import read_joined

    if (options.action == "merge") != (options.output is not None):
        raise SettingsError(f"{options.action}: --output goes with merge, and merge needs it")
    if options.json is not None and options.action != "inspect":
        raise SettingsError(f"{options.action}: --json goes with inspect")
    if options.action == "inspect":
        manifests: dict[str, Any] = {}  # Any: plain values
        for store in options.stores:
            manifest = read_joined(store)
            each = manifest.num_bytes / max(1, manifest.num_positions)
            took = f"{manifest.seconds:,.0f} s" + (f", {manifest.flops:.3g} operations" if manifest.flops else "")
            rows = {
                "complete": "yes" if manifest.complete else "no: run `leadspan capture` again to continue",
                "teacher": manifest.teacher + (f" at {manifest.teacher_revision}" if manifest.teacher_revision else ""),
                "weights": manifest.weights_hash,
                "tokenizer": manifest.tokenizer_hash,
                "template": manifest.template_hash,
                "codec": manifest.codec.model_dump_json(),
                "engine": f"{manifest.engine}, {manifest.dtype}",
                "temperatures": ", ".join(f"{t:g}" for t in manifest.temperatures),
                "vocabulary": f"{manifest.num_tokens:,}",
                "sequences": f"{manifest.num_sequences:,}",
                "positions": f"{manifest.num_positions:,}",
                "shards": f"{len(manifest.shards):,}",
                "bytes": f"{manifest.num_bytes:,} ({each:.1f} a position)",
                "capture": took,
                "KL lost": "not measured" if manifest.kl_lost is None else f"{manifest.kl_lost:.3g} nats a position",
                "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
            }
            manifests[str(store)] = manifest.model_dump(mode="json")
            console_beside(options.json).print(rich_table(Block(str(store), (), tuple(rows.items()))))
        write_json(manifests, options.json)
        return
    # `inspect` needs no torch.
    from leadspan.teacher.merge import merge_stores
    from leadspan.teacher.store import TargetStore

    if options.action == "verify":
        for path in options.stores:
            store = TargetStore(path)
            shards = f"{len(store.manifest.shards):,} shard{'s' if len(store.manifest.shards) > 1 else ''}"
            print_plain(f"{path}: {store.verify():,} rows in {shards} are whole")
        return
    merged = merge_stores(options.stores, options.output)
    print_plain(f"store: {options.output}: {merged.num_sequences:,} sequences, {merged.num_positions:,} positions")
