"""Rewrite the model card of a run's student, with further evaluations and its retention against the uncut student."""

import argparse
from pathlib import Path

from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, its evaluations, the uncut run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of a trained student")
    parser.add_argument(
        "--evaluated", type=Path, nargs="+", default=[], metavar="DIR", help="outputs of `leadspan evaluate RUN`"
    )
    parser.add_argument(
        "--full",
        type=Path,
        metavar="RUN",
        help="run of the same recipe without a cut, to compare with (one in the same directory)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the card, and print its path."""
    from leadspan.data.truncation import Full
    from leadspan.errors import RunError
    from leadspan.results import load_run

    result = load_run(options.run)
    if result.train is None or result.recipe is None:
        raise RunError(f"{options.run}: it has trained no student; give the directory of a `leadspan distill`")
    evaluations = {evaluation.task: evaluation for evaluation in result.evaluations}
    for directory in options.evaluated:
        reference = load_run(directory)
        if reference.recipe != result.recipe:
            raise RunError(
                f"{directory}: it evaluates another run than {options.run}; give the output of `evaluate RUN`"
            )
        # A later evaluation of a task replaces the one at the end of training.
        evaluations |= {evaluation.task: evaluation for evaluation in reference.evaluations}
    full = load_run(options.full) if options.full else None
    if full is not None and not isinstance(full.policy, Full):
        raise RunError(
            f"--full {options.full}: its student has not learnt from uncut traces; give one whose cut is full"
        )
    shown = result.model_copy(update={"evaluations": list(evaluations.values())})
    # These import torch, which waits until the runs are known to be there.
    from leadspan.hub.card import write_card
    from leadspan.pipeline.directory import claimed

    # A run that is being written must not get a second writer.
    with claimed(options.run):
        print_plain(f"model card: {write_card(shown, options.run, full)}")
