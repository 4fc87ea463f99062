"""Compare runs: one self-contained HTML page, or its tables, figures and data for a paper."""

import argparse
from pathlib import Path

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
        "--output", type=Path, help="file to write, for png a directory (report.html, .md, .json, report-figures)"
    )
    parser.add_argument("--title", default="What the cut kept, and what it cost", help="title of the page")
    parser.add_argument(
        "--target", type=float, default=0.9, help="share of the uncut run's accuracy that has to be kept (0.9)"
    )
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
        help="JSON of `leadspan audit` to show; audit.json in the directories given is found by itself",
    )
    parser.add_argument(
        "--samples", type=int, default=4, help="problems shown side by side for each cut policy and task (4)"
    )


def run(options: argparse.Namespace) -> None:
    """Load the runs, print the tables, write the report."""
    from leadspan.errors import SettingsError
    from leadspan.study.compare.cost_axes import COST_OPTIONS
    from leadspan.study.compare.frontier import build_frontiers
    from leadspan.study.compare.tables import print_frontiers
    from leadspan.study.report.content import build_report
    from leadspan.study.report.gathered import gather
    from leadspan.study.report.write import write_report

    if not 0 < options.target <= 1:
        raise SettingsError(f"--target {options.target}: must be a share above 0 and at most 1, such as 0.9")
    if options.samples < 0:
        raise SettingsError(f"--samples {options.samples}: must be 0 or more")
    gathered = gather(options.runs, options.audits)
    cost = COST_OPTIONS[options.cost]
    report = build_report(gathered, options.title, options.target, cost, options.samples)
    print_frontiers(build_frontiers(gathered.runs), options.target, cost)
    for path in gathered.skipped:
        print(f"skipped: {path}: no run in it")
    for study in report.studies:
        for trial in study.missing:
            print(f"missing: {trial.trial}: {trial.reason}")
    output = options.output or Path(DEFAULT_OUTPUTS[options.format])
    for path in write_report(report, output, options.format):
        print(f"report: {path}")
