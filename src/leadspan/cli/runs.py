"""What recipes make: the targets of a teacher, stored, shown and checked; a student; data for other programs."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    argument,
    command,
    load_libraries,
    read_recipe,
    recipe_file,
    show,
    status_line,
)
from leadspan.errors import ModelError, SettingsError
from leadspan.sources import check_output
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.tables import Block
    from leadspan.teacher.capture_plan import Estimate


@command(
    *recipe_file("YAML recipe; its section `capture` says what is stored and where"),
    argument(
        "--dry-run", action="store_true", help="print size, time and the KL lost to each codec on a sample, and stop"
    ),
    argument("--sample", type=int, default=1024, help="positions of the sample of a dry run (1024)"),
    JSON,
)
def capture(options: argparse.Namespace) -> None:
    """Run the teacher once over the traces of a recipe, and store its targets for every later run."""
    from leadspan.recipe import check_capture

    # One position has no standard error.
    if options.sample < 2:
        raise SettingsError(f"--sample {options.sample}: give at least 2 positions")
    recipe = read_recipe(options, ["data", "student", "teacher"] if options.dry_run else ["data", "teacher"])
    check_capture(recipe)
    load_libraries()
    from leadspan.pipeline.run import prepare_capture
    from leadspan.ranks import process_state
    from leadspan.status import report_status
    from leadspan.teacher.capture import estimate_capture, load_teacher, run_capture

    state = process_state()
    with status_line("preparing data"):
        job = prepare_capture(recipe)
        if options.dry_run:
            report_status("measuring a sample")
            estimate = estimate_capture(job, load_teacher(job), options.sample)
            shown = _block(estimate, estimate.positions_per_second * state.num_processes)
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
        show([shown], values, options.json, long_lines=True)


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
    """Show, check or join stores of teacher targets."""
    from leadspan.tables import Block
    from leadspan.teacher.manifest import read_joined

    if (options.action == "merge") != (options.output is not None):
        raise SettingsError(f"{options.action}: --output goes with merge, and merge needs it")
    if options.json is not None and options.action != "inspect":
        raise SettingsError(f"{options.action}: --json works with inspect only")
    if options.action == "inspect":
        manifests: dict[str, Any] = {}  # Any: plain values
        blocks: list[Block] = []
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
            blocks.append(Block(str(store), (), tuple(rows.items())))
        show(blocks, manifests, options.json)
        return
    # `inspect` needs no torch.
    from leadspan.teacher.fill import merge_stores
    from leadspan.teacher.store import TargetStore

    if options.action == "verify":
        for path in options.stores:
            store = TargetStore(path)
            shards = f"{len(store.manifest.shards):,} shard{'s' if len(store.manifest.shards) > 1 else ''}"
            print_plain(f"{path}: {store.verify():,} rows in {shards} are whole")
        return
    merged = merge_stores(options.stores, options.output)
    print_plain(f"store: {options.output}: {merged.num_sequences:,} sequences, {merged.num_positions:,} positions")


@command(
    *recipe_file(),
    argument("--resume", action="store_true", help="continue from the last complete checkpoint"),
    argument(
        "--dry-run",
        action="store_true",
        help="check the recipe, the files it names and the chat template, print it, and stop",
    ),
    JSON,
)
def distill(options: argparse.Namespace) -> None:
    """Train a student from a recipe, evaluate it, and write a run directory."""
    from leadspan.settings import dump_yaml

    if options.dry_run and options.json is not None:
        raise SettingsError("--json: a dry run prints the recipe and measures nothing; leave one of the two out")
    # A dry run is for machines without a network too.
    recipe = read_recipe(options, must_answer=not options.dry_run)
    load_libraries()
    if options.dry_run:
        from leadspan.costs.memory import disk_bytes
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
    from leadspan.ranks import process_state
    from leadspan.report.write import run_summary
    from leadspan.tables import quantity
    from leadspan.training.result import CHECKPOINTS_DIR

    state = process_state()
    with status_line():
        result = run_recipe(recipe, options.resume)
    if state.is_main_process:
        directory, checkpoints = f"run directory: {recipe.output}", recipe.output / CHECKPOINTS_DIR
        if num_bytes := sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()):
            size = quantity("peak_memory_bytes", num_bytes)
            directory += f", of which {checkpoints} takes {size}; training.keep_checkpoints=false leaves none behind "
            directory += "a finished run"
        show([run_summary(result), directory], result.model_dump(mode="json"), options.json, long_lines=True)


@command(
    *recipe_file(),
    argument("--output", type=Path, required=True, metavar="DIR", help="directory to write"),
    argument(
        "--what",
        choices=("data", "tasks", "all"),
        default="all",
        help="the truncated training data, the evaluation tasks, or both (all)",
    ),
    argument("--model", help="model that the evaluation commands name (the student of the recipe's run)"),
)
def export(options: argparse.Namespace) -> None:
    """Write a recipe's truncated traces and tasks for other programs: TRL, Axolotl, LLaMA-Factory, lm-eval,
    lighteval.
    """  # noqa: D205  # the line of the help
    from leadspan.recipe import Part

    check_output("--output", options.output)
    sections: tuple[Part, ...] = ("data", "tasks")
    recipe = read_recipe(options, sections if options.what == "all" else [s for s in sections if s == options.what])
    load_libraries()
    from datasets import disable_progress_bars

    from leadspan.export.harness import export_tasks
    from leadspan.export.trainers import export_data

    # Bars of the library would stand between the lines that say what was written.
    disable_progress_bars()
    if options.what != "tasks":
        data = export_data(recipe, options.output)
        print_plain(
            f"{data.num_train:,} training examples under {recipe.cut.label}: {data.num_tokens:,} tokens, "
            f"{data.num_labels:,} labels; {data.num_validation:,} validation examples, uncut"
        )
        for reason, number in {**data.counts.dropped, **data.left_out}.items():
            print_plain(f"left out: {number:,} x {reason}")
        print_plain("\n".join(f"wrote {file}" for file in data.files))
    # A recipe without tasks is fine, unless tasks alone were asked for.
    if options.what == "tasks" or (options.what == "all" and recipe.evaluation.tasks):
        model = options.model or str(recipe.student_directory)
        tasks = export_tasks(recipe, options.output / "tasks", model)
        print_plain("\n".join(f"wrote {file}" for file in tasks.files))
        print_plain(f"\nlm-evaluation-harness, in an environment that has leadspan too:\n  {tasks.harness}")
        if tasks.lighteval:
            print_plain(
                f"lighteval, in an environment of its own, with its own prompts and graders:\n  {tasks.lighteval}"
            )
        if recipe.evaluation.sampling.thinking_budget is not None:
            print_plain("neither closes thinking after sampling.thinking_budget; their figures are without one")
        if tasks.without_lighteval:
            print_plain(f"not among lighteval's tasks: {', '.join(tasks.without_lighteval)}")
