"""A `full` training step of leadspan against TRL's GKD trainer: same models, same rows, forward KL alone.

Both sides get the same tiny Qwen3 student and teacher, the same token ids in the same batches, and the loss on the
replies alone: leadspan with kl_weight 1 and temperature 1, TRL's GKDTrainer with lmbda 0, beta 0, temperature 1. Each
runs in a fresh process through its own trainer, in turn; an optimiser step is timed by a callback, from its begin to
its end. The time ratio is the median over rounds of the ratio of the rounds' median steps. Memory is the growth while
training runs: on the CPU the peak of the resident set, reset just before, less the resident set just before; on a GPU
the allocator's peak less what was allocated before. The untrained loss of the first batch and the loss of every step
are compared.
"""

import importlib.util
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.memory import MIB
from benchmarks.record import Figure, Outcome, RecordError, Spread, side_in_process
from benchmarks.timing import paired_ratio

SIDES = ("leadspan", "trl")
SHAPES = (64, 2, 128, 4)
LOSS_DIGITS = 5e-5
SIZES = (
    # vocabulary, timed steps, rounds, time target, memory target
    (4_096, 14, 3, 0.7, 0.5),
    (131_072, 4, 2, 0.5, 0.2),
)
Runs = dict[str, list[dict[str, Any]]]


def run() -> Outcome:
    return compared(SIZES)


def compared(sizes: Sequence[tuple[int, int, int, float | None, float | None]], *shapes: int) -> Outcome:
    """Both sides at some sizes; `shapes` as in `gkd_sides`.

    Raises:
        RecordError: TRL is not installed, or a side failed.
    """
    if importlib.util.find_spec("trl") is None:
        raise RecordError("trl: not installed; pip install -c constraints.txt -e '.[bench]'")
    sides: dict[str, Spread] = {}
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    width, layers, teacher_width, teacher_layers = shapes or SHAPES
    settings: dict[str, Any] = {"student": f"hidden {width} x {layers} layers"}
    settings["teacher"] = f"hidden {teacher_width} x {teacher_layers} layers"
    settings |= {"examples_per_step": 4, "max_tokens": 512, "warm_up_steps": 2, "dtype": "float32"}
    for vocab_size, num_steps, num_rounds, *targets in sizes:
        runs: Runs = {side: [] for side in SIDES}
        for _ in range(num_rounds):
            for side in SIDES:
                runs[side].append(side_in_process("benchmarks.gkd_sides", side, vocab_size, num_steps, *shapes))
        sides |= _spreads(vocab_size, runs)
        figures += _figures(vocab_size, runs, *targets)
        details[f"V={vocab_size}: untrained loss"] = {side: runs[side][0]["untrained_loss"] for side in SIDES}
        settings[f"V={vocab_size}"] = {"steps": num_steps, "rounds": num_rounds, "threads": runs["trl"][0]["threads"]}
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures, runs["trl"][0]["gpu"], details)


def _spreads(vocab_size: int, runs: Runs) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for side, rounds in runs.items():
        name = f"V={vocab_size}: {side}"
        found[f"{name}, step"] = Spread.of([s for r in rounds for s in r["wall_seconds"]])
        found[f"{name}, processor time of a step"] = Spread.of([s for r in rounds for s in r["processor_seconds"]])
        found[f"{name}, memory growth"] = Spread.of([r["memory_growth"] / MIB for r in rounds], "MiB")
    return found


def _figures(vocab_size: int, runs: Runs, time_target: float | None, memory_target: float | None) -> list[Figure]:
    ours, theirs = runs["leadspan"], runs["trl"]
    apart = [abs(a / b - 1) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True)]
    name = f"V={vocab_size}"
    return [
        Figure(f"{name}: time leadspan / TRL", step_ratio(runs, "wall_seconds"), time_target),
        Figure(f"{name}: processor time leadspan / TRL", step_ratio(runs, "processor_seconds")),
        Figure(f"{name}: memory leadspan / TRL", step_ratio(runs, "memory_growth"), memory_target),
        Figure(
            f"{name}: relative difference of the untrained loss",
            abs(ours[0]["untrained_loss"] / theirs[0]["untrained_loss"] - 1),
            LOSS_DIGITS,
        ),
        Figure(f"{name}: largest relative difference of a step's loss", max(apart)),
    ]


def step_ratio(runs: Runs, key: str, above: str = "leadspan", below: str = "trl") -> float:
    """One side's figure over the other's: the median over rounds, of the median of a round where it has several."""
    return paired_ratio(*([_middle(measured[key]) for measured in runs[side]] for side in (above, below)))


def _middle(value: list[float] | float) -> float:
    return statistics.median(value) if isinstance(value, list) else value
