"""Compare runs: one self-contained HTML page, or its tables, figures and data for a paper."""

import argparse
import sys
from pathlib import Path

from leadspan.cli.output import STANDARD_OUTPUT, console_beside
from leadspan.text import print_plain

DEFAULT_OUTPUTS = {"html": "report.html", "md": "report.md", "json": "report.json", "png": "report-figures"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run directories, what to write and where."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory, a directory of them, or a study's directory"
    )
    parser.add_argument(
        "--format",
        choices=list(DEFAULT_OUTPUTS),
        default="html",
        help="html: the page; md: its tables; json: everything the page shows; png: its figures (extra `figures`)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write, for png a directory (report.html, .md, .json, report-figures); - prints it",
    )
    parser.add_argument("--title", default="What the cut kept, and what it cost", help="title of the page")
    parser.add_argument("--target", type=float, default=0.9, help="retention that a cut must reach, as a share (0.9)")
    parser.add_argument(
        "--cost",
        choices=("time", "memory", "flops", "tokens", "energy", "money"),
        default="time",
        help="cost that orders the rows and the recommendation (time)",
    )
    parser.add_argument(
        "--audit",
        dest="audits",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSON of `leadspan audit` to show; audit.json in the given directories is found automatically",
    )
    parser.add_argument(
        "--samples", type=int, default=4, help="problems shown side by side for each cut policy and task (4)"
    )


def run(options: argparse.Namespace) -> None:
    """Load the runs, print the tables, write the report."""
    from leadspan.errors import SettingsError
    from leadspan.report.content import build_report
    from leadspan.report.costs import COST_OPTIONS
    from leadspan.report.inputs import read_inputs
    from leadspan.report.write import print_report, report_text, write_report
    from leadspan.sources import check_output

    # Before the runs are read, which may take long.
    if not 0 < options.target <= 1:
        raise SettingsError(f"--target {options.target}: must be a share above 0 and at most 1, such as 0.9")
    is_printed = str(options.output) == STANDARD_OUTPUT
    if is_printed and options.format == "png":
        raise SettingsError("--output -: figures are files; give a directory, or another --format")
    if options.samples < 0:
        raise SettingsError(f"--samples {options.samples}: must be 0 or more")
    output = options.output or Path(DEFAULT_OUTPUTS[options.format])
    if not is_printed:
        check_output("--output", output, is_directory=options.format == "png")
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
        sys.stdout.write(report_text(report, options.format))
        return
    for path in write_report(report, output, options.format):
        print_plain(f"report: {path}")
