"""Runs: one student, the trials of a study, the size that a claim needs, and the report on finished runs."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    STANDARD_OUTPUT,
    argument,
    check_kind,
    command,
    console_beside,
    load_libraries,
    read_recipe,
    recipe_file,
    show,
    status_line,
)
from leadspan.errors import ModelError, RunError, SettingsError
from leadspan.sources import check_figures, check_output, source_faults
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.statistics.power import Claim
    from leadspan.statistics.resampling import Scores
    from leadspan.study.record import StudyRecord
    from leadspan.study.settings import Study
    from leadspan.tables import Block

DEFAULT_OUTPUTS = {"html": "report.html", "md": "report.md", "json": "report.json", "png": "report-figures"}

_FROM_RUNS = "; estimated where runs are given"


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
    load_libraries(*(() if options.dry_run else ("leadspan.pipeline.run",)))
    if options.dry_run:
        from leadspan.costs.memory import disk_bytes
        from leadspan.inputs import check_renderings
        from leadspan.planning.prediction import student_shape
        from leadspan.planning.tables import disk_of_run

        check_renderings([recipe])
        print_plain(dump_yaml(recipe).rstrip("\n"))
        try:
            # A student that is not there has been reported by its path.
            is_there = not source_faults(s for s in recipe.sources() if s.key == "student.path")
            disk = disk_of_run(disk_bytes(student_shape(recipe))) if is_there else "Disk: not known without the student"
        except ModelError as error:
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
            directory += f", of which {checkpoints} takes {size}; training.keep_checkpoints=false keeps none"
        show([run_summary(result), directory], result.model_dump(mode="json"), options.json, long_lines=True)


@command(
    *recipe_file("YAML file of the study", "the study's", "STUDY"),
    argument("--dry-run", action="store_true", help="list trials and controls with their state, and stop"),
    JSON,
)
def study(options: argparse.Namespace) -> None:
    """Run a study: one recipe varied along axes, over seeds, with its controls; complete trials are skipped."""
    check_kind(options.recipe, "study")
    from leadspan.settings import load_settings
    from leadspan.study.settings import Study

    study = load_settings(Study, options.recipe, options.overrides)
    check_output("output", study.output)
    check_kind(options.recipe.parent / study.recipe, "recipe")
    study.check_needs()

    load_libraries("leadspan.study.study")
    from leadspan.study.record import trials_block
    from leadspan.study.study import run_study
    from leadspan.tables import quantity

    console = console_beside(options.json)
    lines: list[str] = []
    if options.dry_run:
        record, lines = _planned(study, options.recipe)
    else:
        record = run_study(study, options.recipe, console)
        for capture in record.captures:
            positions = "" if capture.num_positions is None else f"; {capture.num_positions:,} positions"
            size = "" if capture.num_bytes is None else f", {quantity('peak_memory_bytes', capture.num_bytes)}"
            took = "" if capture.seconds is None else f", captured once in {capture.seconds:,.0f} s"
            lines.append(f"{capture.name}: served {capture.num_trials} trials{positions}{size}{took}")
    failed = record.of_state("failed")
    lines += [f"not made: {note}" for note in record.notes]
    lines += [f"failed: {trial.title}: {trial.message}" for trial in failed]
    show([trials_block(record), *lines], record.model_dump(mode="json"), options.json, long_lines=True)
    # After table and JSON: a failed trial does not hold back the results of the others.
    if failed and not options.dry_run:
        raise RunError(
            f"{len(failed)} of {len(record.trials)} trials failed, {failed[0].title} first; the same command tries "
            "them again and keeps what is complete"
        )
    if not options.dry_run:
        console.print(shlex.join(["leadspan", "report", str(study.output)]), highlight=False, soft_wrap=True)


def _planned(study: "Study", study_file: Path) -> "tuple[StudyRecord, list[str]]":
    """The trials of a dry run with their state, and what they need: disk, and stores to capture."""
    from leadspan.inputs import check_renderings
    from leadspan.planning.tables import disk_of_study
    from leadspan.study.study import plan_study, planned_record
    from leadspan.study.trials import is_done

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
            lines[-1] += "nothing to capture"
            continue
        apart, positions = job.sequences.num_apart, sum(n - 1 for n in job.plan.lengths)
        whose = f", {apart:,} of them for cuts that change the context" if apart else ""
        if job.undrawn:
            number, most = len(job.undrawn), sum(job.undrawn)
            lines[-1] += f"{number:,} rollouts to draw, with at most {most:,} positions to capture; also "
        lines[-1] += f"{len(job.sequences):,} sequences, {positions:,} positions to capture{whose}"
    return record, lines


@command(
    argument("--claim", type=float, help="retention to show with the interval's lower end (0.91)"),
    argument("--retention", type=float, help="true retention that is expected (0.95)" + _FROM_RUNS),
    argument("--accuracy", type=float, help="accuracy of the full student (0.5)" + _FROM_RUNS),
    argument("--between", type=float, help="share of the variance between problems (0.6)" + _FROM_RUNS),
    argument("--correlation", type=float, help="correlation of the students' chances over problems (0.9)" + _FROM_RUNS),
    argument("--seed-sd", type=float, help="standard deviation of accuracy between training seeds (0.01)" + _FROM_RUNS),
    argument("--level", type=float, help="confidence level of the interval (0.95)"),
    argument("--power", type=float, help="probability of showing the claim (0.8)"),
    argument("--samples", type=int, nargs="+", default=[1, 4, 16, 64], help="samples per problem (1 4 16 64)"),
    argument("--seeds", type=int, nargs="+", default=[1, 3, 5, 10, 20], help="seeds per student (1 3 5 10 20)"),
    argument("--problems", type=int, nargs="+", default=[30, 60, 500, 1319], help="problems to judge (30 60 500 1319)"),
    argument("--full", type=Path, nargs="+", metavar="RUN", help="finished runs of the full student"),
    argument("--policy", type=Path, nargs="+", metavar="RUN", help="finished runs of the policy's student"),
    argument("--task", help="task of the runs, where they have several"),
    JSON,
)
def power(options: argparse.Namespace) -> None:
    """Compute how many problems, samples and seeds a claim about retention needs."""
    from leadspan.results import load_run
    from leadspan.settings import validate
    from leadspan.statistics.power import Claim, expected_from

    # What is not given is estimated from runs, or has its default.
    stated = {name: getattr(options, name) for name in Claim.model_fields if getattr(options, name) is not None}
    if (options.full is None) != (options.policy is None):
        raise SettingsError("power: --full and --policy go together; give finished runs of both students")
    if min(*options.samples, *options.seeds, *options.problems, 1) < 1:
        raise SettingsError("power: --samples, --seeds and --problems are numbers from 1 upwards")
    scores: dict[str, list[Scores]] = {"policy": [], "full": []}
    for side, of_side in scores.items():
        for path in getattr(options, side) or ():
            # With one task in the run there is no need to name it.
            results = [result for result in load_run(path).evaluations if options.task in (None, result.task)]
            if len(results) != 1:
                raise RunError(f"{path}: {len(results)} evaluations match; name the task with --task")
            of_side.append(results[0].correct)
    is_measured = options.full is not None
    claim = expected_from(**scores, stated=stated) if is_measured else validate(Claim, stated, "power")
    parts, values = _sizes(claim, options.problems, options.samples, options.seeds)
    show(parts, values, options.json)


def _sizes(
    claim: "Claim", problems: Sequence[int], samples: Sequence[int], seeds: Sequence[int]
) -> "tuple[list[str | Block], dict[str, Any]]":
    """The problems that a claim needs and what plans of these sizes can show, as shown and as plain values."""
    from leadspan.statistics.power import chance_to_show, problems_needed, standard_error
    from leadspan.tables import Block, percent

    stated_claim = (
        f"Claim: retention of at least {percent(claim.claim, None)}, with the lower end of a "
        f"{percent(claim.level, None)} interval, shown with a probability of {percent(claim.power, None)}.\n"
        f"Expected: retention {percent(claim.retention, 1)}, accuracy of the full student "
        f"{percent(claim.accuracy, 1)}, {percent(claim.between)} of the variance between problems, "
        f"correlation {claim.correlation:.2f}, accuracy varies by {100 * claim.seed_sd:.1f} points from seed to seed.\n"
    )
    needed, rows = [], list[tuple[str, ...]]()
    for count in samples:
        sizes = {number: problems_needed(claim, count, number) for number in seeds}
        needed += [{"samples": count, "seeds": number, "problems": sizes[number]} for number in seeds]
        rows.append((str(count), *("none" if sizes[n] is None else f"{sizes[n]:,}" for n in seeds)))
    header = ("samples per problem", *("1 seed *" if number == 1 else f"{number} seeds" for number in seeds))
    notes = (
        "* about the two trained models only; the spread between seeds is left out\n"
        "none: a million problems are not enough, because accuracy varies too much from seed to seed, or the claim is "
        "too close to what is expected"
    )
    # All plans as values; as a table the fewest and the most samples, one seed and the fewest of several: one leaves
    # the spread between seeds out.
    every = list(itertools.product(problems, samples, seeds))
    plans = {
        plan: {
            **dict(zip(("problems", "samples", "seeds"), plan, strict=True)),
            "standard_error": standard_error(claim, *plan),
            "chance": chance_to_show(claim, *plan),
        }
        for plan in every
    }
    counts = [count for count in samples if count in (min(samples), max(samples))]
    few, many = min(seeds), min((number for number in seeds if number > 1), default=min(seeds))
    shown: list[tuple[str, ...]] = []
    for size, count, number in itertools.product(problems, counts, dict.fromkeys((few, many))):
        error, chance = plans[size, count, number]["standard_error"], plans[size, count, number]["chance"]
        mark = " *" if number == 1 else ""
        shown.append((f"{size:,}", str(count), f"{number}{mark}", f"{error:.3f}", percent(chance)))
    columns = ("problems", "samples", "seeds", "standard error of retention", "probability of showing the claim")
    needed_block = Block("Problems needed", header, tuple(rows), num_text=0)
    plans_block = Block("\nWhat a plan can show", columns, tuple(shown), num_text=0)
    values = {"claim": claim.model_dump(mode="json"), "needed": needed, "plans": [plans[plan] for plan in every]}
    return [stated_claim, needed_block, notes, plans_block], values


@command(
    argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory, a directory of them, or a study's directory"
    ),
    argument(
        "--format",
        choices=list(DEFAULT_OUTPUTS),
        help="html: the page; md: its tables; json: everything the page shows; png: its figures (extra `figures`); "
        "by default what the suffix of --output says, or html",
    ),
    argument(
        "--output",
        type=Path,
        help="file to write, for png a directory (report.html, .md, .json, report-figures); - prints it",
    ),
    argument("--title", default="What the cut kept, and what it cost", help="title of the page"),
    argument("--target", type=float, default=0.9, help="retention that a cut must reach, as a share (0.9)"),
    argument(
        "--cost",
        choices=("time", "memory", "flops", "tokens", "energy", "money"),
        default="time",
        help="cost that orders the rows and the recommendation (time)",
    ),
    argument(
        "--audit",
        dest="audits",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSON of `leadspan audit` to show; audit.json in the given directories is found automatically",
    ),
    argument("--samples", type=int, default=4, help="problems shown side by side for each cut policy and task (4)"),
)
def report(options: argparse.Namespace) -> None:
    """Compare runs: one self-contained HTML page, or its tables, figures and data for a paper."""
    from leadspan.report.content import build_report
    from leadspan.report.inputs import read_inputs
    from leadspan.report.rows import COST_OPTIONS
    from leadspan.report.write import print_report, report_text, write_report

    # Before the runs are read, which may take long.
    if not 0 < options.target <= 1:
        raise SettingsError(f"--target {options.target}: must be a share above 0 and at most 1, such as 0.9")
    is_printed = str(options.output) == STANDARD_OUTPUT
    suffix = Path(options.output or "").suffix.lower().removeprefix(".")
    form: Any = options.format or {"": "html", "htm": "html"}.get(suffix, suffix)
    if form not in DEFAULT_OUTPUTS:
        raise SettingsError(
            f"--output {options.output}: no report ends in .{suffix}; write .html, .md, .json or .png, or add --format"
        )
    if is_printed and form == "png":
        raise SettingsError("--output -: figures are files; give a directory, or another --format")
    if options.samples < 0:
        raise SettingsError(f"--samples {options.samples}: must be 0 or more")
    output = options.output or Path(DEFAULT_OUTPUTS[form])
    if not is_printed:
        check = check_figures if Path(DEFAULT_OUTPUTS[form]).suffix else check_output  # a directory of figures
        check("--output", output)
    inputs = read_inputs(options.runs, options.audits)
    report = build_report(inputs, options.title, options.target, COST_OPTIONS[options.cost], options.samples)
    # With the report on standard output, the tables go to standard error.
    print_report(report, console_beside(options.output))
    for path in inputs.skipped:
        print_plain(f"skipped: {path}: no run in it", error=is_printed)
    # Always on standard error: what is left out must not go unseen.
    for text in report.damaged:
        print_plain(f"damaged, and left out: {text}", error=True)
    for trial in (trial for study in report.studies for trial in study.trials if trial.state != "done"):
        print_plain(f"missing: {trial.title}: {trial.message or trial.state}", error=is_printed)
    if is_printed:
        sys.stdout.write(report_text(report, form))
        return
    for path in write_report(report, output, form):
        print_plain(f"report: {path}")
