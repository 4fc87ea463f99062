"""Alternating timed runs, so that a change of load on the machine meets every side alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Wall seconds of each side, one after the other, round by round; the first `warm_up` rounds are dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warm_up + rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[warm_up:] for name, values in seconds.items()}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
