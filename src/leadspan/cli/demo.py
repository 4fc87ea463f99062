"""Train a teacher, a base model and six students on this machine, and show the retention of each cut."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Output and seed."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="directory of the demo (runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of world, weights and order (0)")


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    from leadspan.demo import run_demo

    run_demo(options.output, options.seed)
