"""Figures of a command as JSON, in a file or on standard output."""

import argparse
import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.status import PlainConsole

STANDARD_OUTPUT = "-"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that writes the printed figures as JSON."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON; - is standard output")


def add_set(parser: argparse.ArgumentParser, what: str, name: str = "overrides") -> None:
    """Add the option that changes settings of a command without a recipe; `name` is its attribute of the options."""
    parser.add_argument("--set", dest=name, action="append", default=[], metavar="key=value", help=what)


def load_libraries() -> None:
    """Import torch and Transformers, which takes seconds, and say so first."""
    from leadspan.status import PlainConsole, StatusLine, report_status

    is_first = int(os.environ.get("RANK", "0")) == 0
    with StatusLine(PlainConsole(stderr=True, quiet=not is_first)):
        report_status("loading libraries")
        importlib.import_module("torch")
        importlib.import_module("transformers.generation")
        if os.environ.get("WANDB_MODE") == "offline":
            # Transformers then prints a line on standard output, which may be for JSON alone.
            with contextlib.redirect_stdout(sys.stderr):
                importlib.import_module("transformers.integrations.integration_utils")


def console_beside(json_path: Path | None) -> "PlainConsole":
    """The console for tables: standard output, or standard error where the JSON goes to standard output."""
    from leadspan.status import PlainConsole

    # What reads the JSON must get nothing else.
    return PlainConsole(stderr=str(json_path) == STANDARD_OUTPUT)


def write_json(values: Any, path: Path | None) -> None:  # Any: plain values
    """Write plain values as JSON to a file, creating its directory, or to standard output; no-op without a path."""
    from leadspan.files import write_atomically

    # Not by `print_plain`: the JSON holds texts as they are, for programs.
    text = json.dumps(values, indent=1) + "\n"
    if str(path) == STANDARD_OUTPUT:
        sys.stdout.write(text)
    elif path is not None:
        write_atomically(path, text)
        print_plain(f"figures: {path}")
