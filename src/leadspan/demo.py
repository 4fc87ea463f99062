"""The demo: reasoning students distilled on cut traces, from nothing, on a CPU, in minutes.

It is a study of a generated world (`recipes/demo`): a teacher trained on long problems; a small base trained on short
ones, so that it knows how to finish; then one student for each policy, distilled from the teacher on long traces. All
are evaluated on the same held-out long problems. The demo prints only what it has measured.
"""

import json
import string
import time
from pathlib import Path

from rich.text import Text

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.report.content import build_report
from leadspan.report.inputs import read_inputs
from leadspan.report.write import print_report, write_report
from leadspan.settings import load_settings
from leadspan.status import PlainConsole
from leadspan.study.record import StudyRecord
from leadspan.study.settings import Study
from leadspan.study.study import run_study
from leadspan.worlds.files import write_world
from leadspan.worlds.settings import WorldFiles

# Large enough that the teacher solves every problem and the base one in ten; small enough for minutes on two cores.
SIZES = {
    "num_traces": 8000,
    "num_problems": 240,
    "teacher_steps": 1000,
    "student_steps": 300,
    "max_new_tokens": 200,  # no right answer is longer than 140
}


def run_demo(directory: Path, seed: int, **sizes: int) -> StudyRecord:
    """Write the recipes and the world of the demo, run its study, and write its report; continues an interrupted demo.

    Args:
        directory: New directory for recipes, world, runs and `report.html`, or that of an interrupted demo.
        seed: Seed of the world, the weights and the order of the examples.
        sizes: Numbers that replace those of `SIZES`.

    Raises:
        RunError: The directory holds something else, or the teacher or the base could not be trained.
    """
    console = PlainConsole()
    start = time.monotonic()
    study_file = write_recipes(directory, seed, **sizes)
    console.print(
        "The demo generates small derivations: a prompt of assignments, a chain of thought that derives and verifies "
        "line by line, and an answer. A teacher learns long problems from scratch, a base learns short ones, and then "
        "one student for each cut is distilled from the teacher. It takes about 6 minutes on two free processors; the "
        f"same command goes on where it was stopped. The recipes are in {study_file.parent}.\n",
        highlight=False,
    )
    write_world(load_settings(WorldFiles, study_file.with_name("world.yaml"), []))
    record = run_study(load_settings(Study, study_file, []), study_file, console)
    report = build_report(read_inputs([directory]), "leadspan demo: what each cut kept, and what it cost")
    # An empty line between the study's board and the report.
    console.print()
    print_report(report, console)
    (path,) = write_report(report, directory / "report.html")
    # The report shows complete runs alone.
    for trial in record.of_state("failed"):
        console.print(Text.assemble(("missing:", "red"), f" {trial.title}: {trial.message}"))
    minutes = (time.monotonic() - start) / 60
    console.print(
        Text.assemble(f"\n{minutes:.1f} minutes. Report: ", (str(path), "bold"), " (one file, opens in any browser).")
    )
    return record


def write_recipes(directory: Path, seed: int, **sizes: int) -> Path:
    """Write the recipes of the demo into `recipes/` of a directory.

    Args:
        directory: New, empty, or that of a demo with the same seed and sizes.
        seed: As for `run_demo`.
        sizes: As for `run_demo`.

    Returns:
        The file of the study.

    Raises:
        RunError: The directory holds something else.
    """
    # The base gets another seed, so that its first weights are not the teacher's.
    quoted = json.dumps(str(directory), ensure_ascii=False)[1:-1]  # a path may hold what ends a string in YAML
    values = {"directory": quoted, "seed": seed, "base_seed": seed + 1, **SIZES, **sizes}
    templates = Path(__file__).with_name("recipes") / "demo"
    recipes = {
        directory / "recipes" / path.name: string.Template(path.read_text(encoding="utf-8")).substitute(values)
        for path in sorted(templates.glob("*.yaml"))
    }
    # An interrupted demo is continued only where every recipe is the same: other numbers would be another demo.
    is_new = not directory.exists() or not any(directory.iterdir())
    for path, text in recipes.items():
        if not is_new and (not path.exists() or path.read_text(encoding="utf-8") != text):
            raise RunError(
                f"--output {directory}: it is not empty, and holds no demo of this seed; remove it, or give another"
            )
    for path, text in recipes.items():
        write_atomically(path, text)
    return directory / "recipes" / "study.yaml"
