"""Compute how many problems, samples and seeds a claim about retention needs."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.cli.output import add_json, console_beside, write_json

if TYPE_CHECKING:
    from leadspan.statistics.power import Claim
    from leadspan.statistics.resampling import Scores
    from leadspan.tables import Block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The claim, what is expected, and the plans to judge."""
    from_runs = "; estimated where runs are given"
    parser.add_argument("--claim", type=float, help="retention to show with the interval's lower end (0.91)")
    parser.add_argument("--retention", type=float, help="true retention that is expected (0.95)" + from_runs)
    parser.add_argument("--accuracy", type=float, help="accuracy of the full student (0.5)" + from_runs)
    parser.add_argument("--between", type=float, help="share of the variance between problems (0.6)" + from_runs)
    parser.add_argument(
        "--correlation", type=float, help="correlation of the students' chances over problems (0.9)" + from_runs
    )
    parser.add_argument(
        "--seed-sd", type=float, help="standard deviation of accuracy between training seeds (0.01)" + from_runs
    )
    parser.add_argument("--level", type=float, help="confidence level of the interval (0.95)")
    parser.add_argument("--power", type=float, help="probability of showing the claim (0.8)")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 16, 64], help="samples a problem (1 4 16 64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5, 10, 20], help="seeds a student (1 3 5 10 20)")
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[30, 60, 500, 1319], help="sizes to judge (30 60 500 1319)"
    )
    parser.add_argument("--full", type=Path, nargs="+", metavar="RUN", help="finished runs of the full student")
    parser.add_argument("--policy", type=Path, nargs="+", metavar="RUN", help="finished runs of the policy's student")
    parser.add_argument("--task", help="task of the runs, where they have several")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print how many problems are needed, and what plans of given size can show."""
    from leadspan.errors import SettingsError
    from leadspan.settings import validate
    from leadspan.statistics.power import Claim, chance_to_show, problems_needed, standard_error
    from leadspan.statistics.power_from_runs import expected_from
    from leadspan.tables import Block, rich_table

    # What is not given is estimated from runs, or has its default.
    stated = {name: getattr(options, name) for name in Claim.model_fields if getattr(options, name) is not None}
    if (options.full is None) != (options.policy is None):
        raise SettingsError("power: --full and --policy go together; give finished runs of both students")
    if min(*options.samples, *options.seeds, *options.problems, 1) < 1:
        raise SettingsError("power: --samples, --seeds and --problems are numbers from 1 upwards")
    if options.full is None:
        claim = validate(Claim, stated, "power")
    else:
        policy, full = (_scores(paths, options.task) for paths in (options.policy, options.full))
        claim = expected_from(policy, full, stated)
    console = console_beside(options.json)
    console.print(
        f"Claim: retention of at least {claim.claim:.0%}, with the lower end of a {claim.level:.0%} interval, shown "
        f"with a probability of {claim.power:.0%}.\n"
        f"Expected: retention {claim.retention:.1%}, accuracy of the full student {claim.accuracy:.1%}, "
        f"{claim.between:.0%} of the variance between problems, correlation {claim.correlation:.2f}, "
        f"accuracy varies by {100 * claim.seed_sd:.1f} points from seed to seed.\n",
        highlight=False,
    )
    rows = []
    for count in options.samples:
        sizes = [problems_needed(claim, count, number) for number in options.seeds]
        rows.append((str(count), *("no number" if size is None else f"{size:,}" for size in sizes)))
    seeds = ["1 seed *" if number == 1 else f"{number} seeds" for number in options.seeds]
    console.print(rich_table(Block("Problems needed", ("samples a problem", *seeds), tuple(rows), num_text=0)))
    console.print(
        "* about the two trained models only; the spread between seeds is left out\n"
        "no number: the seeds alone vary too much for the claim",
        highlight=False,
    )
    console.print(rich_table(_shown(claim, options.problems, options.samples, options.seeds)))
    # All plans, while the printed table shows the extremes alone; null where no number of problems is enough.
    sides = list(itertools.product(options.samples, options.seeds))
    needed = [{"samples": n, "seeds": m, "problems": problems_needed(claim, n, m)} for n, m in sides]
    plans = [
        {
            **dict(zip(("problems", "samples", "seeds"), plan, strict=True)),
            "standard_error": standard_error(claim, *plan),
            "chance": chance_to_show(claim, *plan),
        }
        for plan in ((size, *side) for size in options.problems for side in sides)
    ]
    write_json({"claim": claim.model_dump(mode="json"), "needed": needed, "plans": plans}, options.json)


def _shown(claim: "Claim", problems: Sequence[int], samples: Sequence[int], seeds: Sequence[int]) -> "Block":
    """What plans can show, for the fewest and the most samples, one seed and the fewest of several."""
    from leadspan.statistics.power import chance_to_show, standard_error
    from leadspan.tables import Block

    # One seed leaves the spread between seeds out, so a plan with several is shown beside it.
    few, many = min(seeds), min((number for number in seeds if number > 1), default=min(seeds))
    counts = [count for count in samples if count in (min(samples), max(samples))]
    rows = []
    for size, count, number in itertools.product(problems, counts, dict.fromkeys((few, many))):
        error, chance = standard_error(claim, size, count, number), chance_to_show(claim, size, count, number)
        mark = " *" if number == 1 else ""
        rows.append((f"{size:,}", str(count), f"{number}{mark}", f"{error:.3f}", f"{chance:.0%}"))
    header = ("problems", "samples", "seeds", "standard error of retention", "probability of showing the claim")
    return Block("\nWhat a plan can show", header, tuple(rows), num_text=0)


def _scores(paths: Sequence[Path], task: str | None) -> "list[Scores]":
    from leadspan.errors import RunError
    from leadspan.results import load_run

    scores: list[Scores] = []
    for path in paths:
        # With one task in the run there is no need to name it.
        results = [result for result in load_run(path).evaluations if task in (None, result.task)]
        if len(results) != 1:
            raise RunError(f"{path}: {len(results)} evaluations fit; name the task with --task")
        scores.append(results[0].correct)
    return scores
