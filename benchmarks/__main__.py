"""`python -m benchmarks NAME ...`: measure, print figures beside their targets, record. Also `all`, `list`, `table`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from benchmarks import registry, table
from benchmarks.record import ROOT, Outcome, RecordError, record, start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = (*registry.NAMES, "all", "list", "table")
    parser.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
    names = parser.parse_args(arguments).names
    try:
        for name in names:
            _do(name)
    except RecordError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _do(name: str) -> None:
    if name == "list":
        for known in registry.NAMES:
            print(f"{known:<10} {registry.summary(known)}")
    elif name == "table":
        print(f"wrote {table.write().relative_to(ROOT)}")
    elif name == "all":
        _run_all()
    else:
        begun = start()
        outcome = registry.run(name)
        _print(name, outcome)
        print(f"wrote {record(name, outcome, begun).relative_to(ROOT)}")


def _run_all() -> None:
    """Each benchmark in a process of its own, so that none is measured in what another left."""
    failed = [n for n in registry.NAMES if subprocess.run([sys.executable, "-m", "benchmarks", n], cwd=ROOT).returncode]
    _do("table")
    if failed:
        raise RecordError(f"not measured: {', '.join(failed)}")


def _print(name: str, outcome: Outcome) -> None:
    rows = table.rows(_as_stored(outcome))
    widths = [max(map(len, column)) for column in zip(*rows, ("", "", "target", "reached"), strict=True)]
    print(name)
    for row in (("", "", "target", "reached"), *rows):
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _as_stored(outcome: Outcome) -> list[dict[str, object]]:
    return [{**asdict(figure), "is_reached": figure.is_reached} for figure in outcome.figures]


if __name__ == "__main__":
    sys.exit(main())
