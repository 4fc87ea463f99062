"""`python -m benchmarks NAME ...`: measure, print figures beside their targets, record.

Also `all`, `list`, `table`; and `gpu`, which has options of its own.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from benchmarks import registry, table
from benchmarks.gpu import harness
from benchmarks.record import ROOT, RecordError, record, start


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = (*registry.NAMES, *registry.PARTS, "all", "list", "table")
    parser.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=", ".join((*choices, "gpu")))
    try:
        if arguments[:1] == ["gpu"]:
            return harness.main(arguments[1:])
        for name in parser.parse_args(arguments).names:
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
    elif name in registry.PARTS:
        outcome = registry.run(name)
        table.show(name, outcome)
        print("\n".join(outcome.details["faults"]))
    else:
        begun = start()
        outcome = registry.run(name)
        table.show(name, outcome)
        print(f"wrote {record(name, outcome, begun).relative_to(ROOT)}")


def _run_all() -> None:
    """Each benchmark in a process of its own, so that none is measured in what another left."""
    failed = [n for n in registry.NAMES if subprocess.run([sys.executable, "-m", "benchmarks", n], cwd=ROOT).returncode]
    _do("table")
    if failed:
        raise RecordError(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
