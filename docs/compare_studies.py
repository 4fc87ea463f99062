"""Whether a study that was run again agrees with its first run: `python docs/compare_studies.py FIRST_DIRECTORY AGAIN`.

A condition agrees when the value found again lies within the interval of the first run, for accuracy, for the
derivation alone and for termination. Exit code 1 where one does not; conditions that only one of the two has are named.
Each study is read from where it was run, so that two clones can be held against each other.
"""

import contextlib
import sys
from pathlib import Path

from make_studies import load

from leadspan.errors import LeadspanError
from leadspan.statistics.intervals import Interval
from leadspan.study.record import load_study
from leadspan.tables import percent, percent_interval


def compare(first: Path, again: Path) -> tuple[list[str], int]:
    """Lines to print, and the number of figures that do not agree.

    Raises:
        LeadspanError: A study, its runs, its samples or its world cannot be read.
    """
    found, anew = (_figures(directory) for directory in (first, again))
    shared = [key for key in found if key in anew]
    same = [key for key in shared if found[key].value == anew[key].value]
    apart = [key for key in shared if not found[key].low <= anew[key].value <= found[key].high]
    lines = [
        f"{name}, {kind}: {percent_interval(found[name, kind])}, again {percent(anew[name, kind].value)}"
        for name, kind in apart
    ]
    for directory, own, other in ((first, found, anew), (again, anew, found)):
        alone = dict.fromkeys(name for name, _ in own if (name, "accuracy") not in other)
        lines += [f"{directory} alone: {', '.join(alone)}"] if alone else []
    return [*lines, f"{len(shared)} figures: {len(same)} the same, {len(apart)} outside the first run's interval"], len(
        apart
    )


def _figures(directory: Path) -> dict[tuple[str, str], Interval]:
    output = load_study(directory).study.output
    root = Path("/") if output.is_absolute() else directory.absolute().parents[len(output.parts) - 1]
    with contextlib.chdir(root):
        study = load(output)
    accuracy, derivation = study.rows(study.accuracy), study.rows(study.derivation)
    found = {(name, "accuracy"): row.accuracy for name, row in accuracy.items()}
    found |= {(name, "derivation"): row.accuracy for name, row in derivation.items()}
    return found | {(name, "termination"): row.termination for name, row in accuracy.items()}


def main() -> int:
    """Print the comparison."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python docs/compare_studies.py FIRST_DIRECTORY AGAIN_DIRECTORY\n")
        return 2
    try:
        lines, num_apart = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    except LeadspanError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if num_apart else 0


if __name__ == "__main__":
    sys.exit(main())
