"""Upload a run's student with its model card to the Hugging Face Hub."""

import argparse
from pathlib import Path

from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, name, visibility."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of a trained student")
    parser.add_argument("name", metavar="NAME", help="USER/MODEL on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(options: argparse.Namespace) -> None:
    """Upload, and print the address of the commit."""
    from leadspan.hub.push import check_push, push_student
    from leadspan.results import load_run
    from leadspan.status import PlainConsole, StatusLine, report_status
    from leadspan.training.result import STUDENT_DIR

    # Only a finished run is pushed: one that still trains has no student yet.
    load_run(options.run)
    check_push(options.name)
    with StatusLine(PlainConsole(stderr=True)):
        report_status(f"uploading {options.run / STUDENT_DIR} to {options.name}")
        # Without --private the Hub's own default holds for a new repository.
        commit = push_student(options.run / STUDENT_DIR, options.name, options.private or None)
    print_plain(f"pushed: {commit}")
