"""What comes before a training: an audit, predicted costs, checks, and the teacher's targets."""

import argparse
import itertools
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    argument,
    check_kind,
    command,
    load_libraries,
    local_or_hub,
    read_recipe,
    recipe_file,
    setting,
    show,
    status_line,
)
from leadspan.errors import RunError, SettingsError
from leadspan.sources import Source, check_output, check_sources
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.recipe import Part

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


@command(
    local_or_hub("data", metavar="DATA", help="YAML recipe; or trace file, directory of trace files, or Hub name"),
    argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.sub=value",
        help="settings that replace those of the recipe, or the defaults for the data",
    ),
    local_or_hub("--tokenizer", help="tokenizer that counts the tokens (needed for traces without a recipe)"),
    local_or_hub(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="FILE",
        help="further task whose problems are searched for among the prompts",
    ),
    argument("--limit", type=int, help="read at most this many records"),
    JSON,
    argument("--workers", type=int, help="processes (one per processor, at most 8)"),
    setting("a threshold: near_duplicate=0.7, ngram_words=8, loop_repeats=3, policies.0.p=0.4", "thresholds"),
)
def audit(options: argparse.Namespace) -> None:
    """Audit traces before training: lengths, first answers, the predicted break point, losses per cut, duplicates."""
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: must be at least 1")
    is_recipe = Path(options.data).suffix.lower() in (".yaml", ".yml")
    if is_recipe:
        check_kind(Path(options.data), "recipe")  # answered before the settings are imported
    from leadspan.audit.settings import AuditSettings
    from leadspan.evaluation.settings import task_name
    from leadspan.settings import apply_overrides, validate

    further = [Source("--task", path, "dataset") for path in options.tasks]
    further += [Source("--tokenizer", options.tokenizer, "model")] if options.tokenizer else []
    if is_recipe:
        from leadspan.recipe import load_recipe

        recipe = load_recipe(Path(options.data), options.overrides)
        values = {
            "data": recipe.data.model_dump(mode="json"),
            "tokenizer": options.tokenizer or recipe.tokenizer_path,
            "revision": None if options.tokenizer else recipe.tokenizer_revision,
            "cut": recipe.cut.model_dump(mode="json"),
            "supervision": recipe.supervision.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json") for task in recipe.evaluation.tasks],
            "seed": recipe.seed,
        }
        # The tokenizer of the command line stands in for the recipe's, which then need not exist.
        unused = ("tokenizer", "student.path") if options.tokenizer else ()
        sources = [source for source in recipe.sources(["data", "tasks"]) if source.key not in unused]
    elif options.tokenizer is None:
        raise SettingsError(
            f"{options.data}: traces alone have no tokenizer to count tokens with; add --tokenizer PATH_OR_HUB_NAME "
            "(the student's), or audit a recipe (a .yaml file)"
        )
    else:
        values = {"data": {"train": {"path": options.data}}, "tokenizer": options.tokenizer}
        sources = [Source("DATA", options.data, "dataset")]
        apply_overrides(values, options.overrides)
    if options.limit is not None:
        apply_overrides(values, [f"data.train.limit={options.limit}"])
    tasks = values.setdefault("tasks", [])
    # Each is named after its file, with a number where the name is taken.
    for path in options.tasks if isinstance(tasks, list) else ():  # else `validate` refuses them
        stem = task_name(path)
        candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        taken = {task.get("name") for task in tasks if isinstance(task, dict)}
        tasks.append({"name": next(name for name in candidates if name not in taken), "path": path})
    apply_overrides(values, options.thresholds)
    settings = validate(AuditSettings, values, "audit")
    check_sources([*sources, *further], options.data)

    load_libraries("leadspan.audit.audit")
    from leadspan.audit.audit import run_audit
    from leadspan.audit.findings import blocks

    with status_line():
        result = run_audit(settings, options.workers or min(8, os.cpu_count() or 1))
    title = f"{result.source}, tokens of {result.tokenizer}"
    show([title, *blocks(result)], result.model_dump(mode="json"), options.json)


@command(
    *recipe_file("YAML recipe; its section `plan` names device and price"),
    argument(
        "--cut",
        action="append",
        metavar="POLICY",
        help="policy to compare with the recipe's own, as YAML: '{kind: lead, p: 0.3}'; may be repeated "
        "(full and lead 0.75, 0.5, 0.25, 0.1)",
    ),
    argument(
        "--calibrate",
        action="store_true",
        help="measure the time: run six real steps of the recipe's models and data on this machine for each policy, "
        "with one --cut for that and the recipe's own, and write the rates to plan.calibration, if it is set",
    ),
    JSON,
)
def plan(options: argparse.Namespace) -> None:
    """Predict tokens, FLOPs, memory, time and money of a recipe under several policies, before any training."""
    # With --calibrate the file of rates is written, so it need not exist.
    measured: list[Part] = [] if options.calibrate else ["calibration"]
    recipe = read_recipe(options, ["data", "student", "teacher", *measured])
    from leadspan.data.truncation import AnyPolicy
    from leadspan.settings import Settings, validate
    from leadspan.yaml_text import parse_yaml

    class OnePolicy(Settings):
        cut: AnyPolicy

    options_cut = [(f"--cut {text}", text) for text in options.cut or ()]
    policies = [validate(OnePolicy, {"cut": parse_yaml(text, source)}, source).cut for source, text in options_cut]
    load_libraries("leadspan.planning.plan")
    from leadspan.inputs import first_answers_of, prepare_data
    from leadspan.planning.plan import GRID, calibration_of, plan_recipe
    from leadspan.planning.tables import plan_tables, sentences
    from leadspan.status import report_status

    policies = policies or GRID
    with status_line("preparing data"):
        data = prepare_data(recipe)
        calibration = calibration_of(recipe, data, policies, options.calibrate)
        searched = None
        if recipe.plan.break_point_seconds:
            report_status("looking for first answers")
            searched = first_answers_of(recipe, data)
        report_status("counting")
        plan = plan_recipe(recipe, data, policies, calibration, searched)
    show([*plan_tables(plan), *sentences(plan)], plan.as_json(), options.json)


@command(
    *recipe_file(),
    argument("--examples", type=int, default=8, help="training examples the models are run over (8)"),
    JSON,
)
def doctor(options: argparse.Namespace) -> None:
    """Check a recipe by running parts of it: models, data, loss, store, disk and memory."""
    if options.examples < 2:
        raise SettingsError(f"--examples {options.examples}: give at least 2")
    recipe = read_recipe(options, ["data", "student", "teacher"])
    from rich.table import Table
    from rich.text import Text

    load_libraries("leadspan.doctor.doctor")
    from leadspan.doctor.doctor import examine

    with status_line():
        checks = examine(recipe, options.examples)
    table = Table("check", "verdict", "figure", "remedy", show_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # a remedy is to be read whole, however narrow the terminal
    for check in checks:
        table.add_row(check.name, Text(check.verdict, style=_COLOURS[check.verdict]), check.figure, check.remedy)
    show([table], [asdict(check) for check in checks], options.json)
    # By its exit code, so that a script can stop before it trains.
    failed = sum(check.verdict == "failed" for check in checks)
    if failed:
        raise RunError(f"{failed} of {len(checks)} checks failed; see their remedies in the table")


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
    if not options.dry_run:
        from leadspan.teacher.manifest import checked_for_capture

        check_output("capture.path", checked_for_capture(recipe.capture.path or recipe.store_path))
    load_libraries("leadspan.pipeline.run")
    from leadspan.pipeline.run import prepare_capture
    from leadspan.ranks import process_state
    from leadspan.status import duration, report_status
    from leadspan.tables import Block, quantity
    from leadspan.teacher.capture import estimate_capture, load_teacher, run_capture

    state = process_state()
    with status_line("preparing data"):
        job = prepare_capture(recipe)
        if options.dry_run:
            report_status("measuring a sample")
            estimate = estimate_capture(job, load_teacher(job), options.sample)
            speed = estimate.positions_per_second * state.num_processes
            title = (
                f"{estimate.num_sequences:,} sequences, {estimate.num_positions:,} positions; about "
                f"{duration(estimate.num_positions / speed)} at {speed:,.0f} tokens/s with "
                f"{estimate.codecs[0].codec.label}"
            )
            note = (
                f"KL lost: of {estimate.kl:.4g} nats per position between teacher and untrained student, at "
                f"temperature 1, on {estimate.sample_positions:,} positions; ± one standard error. The first codec is "
                "capture.codec."
            )
            rows: list[tuple[str, ...]] = []
            for row in estimate.codecs:
                sizes = (
                    f"{row.support:,.1f}",
                    f"{row.bytes_per_position:,.1f}",
                    quantity("peak_memory_bytes", row.num_bytes),
                )
                rows.append((row.codec.label, *sizes, f"{row.kl_lost:.2g} ± {row.standard_error:.1g}"))
            shown = Block(title, ("codec", "entries", "bytes a position", "store", "KL lost"), tuple(rows), note)
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


@command(
    argument(
        "action",
        choices=("inspect", "verify", "merge"),
        help="inspect: print the manifest of a store; verify: check every file, row and hash; merge: join stores of "
        "one teacher and codec",
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
