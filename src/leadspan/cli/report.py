"""Write one self-contained HTML file that compares runs: quality against time, memory, FLOPs and tokens."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run directories and the file to write."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory, a directory of them, or a study's directory"
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="file to write (report.html)")
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


def run(options: argparse.Namespace) -> None:
    """Load the runs, print the tables, write the page."""
    from leadspan.study.cost_axes import COST_OPTIONS
    from leadspan.study.frontier import build_frontiers, load_runs
    from leadspan.study.record import missing_trials
    from leadspan.study.report import write_report
    from leadspan.study.tables import print_frontiers

    runs = load_runs(options.runs)
    print_frontiers(build_frontiers(runs), options.target, COST_OPTIONS[options.cost])
    for text in missing_trials(options.runs):
        print(f"missing: {text}")
    path = write_report(runs, options.output, options.title, options.target)
    print(f"report: {path}")
