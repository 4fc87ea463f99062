"""Numbers as a reader sees them: shares, differences and costs, with their intervals and units."""

from leadspan.results import Interval
from leadspan.study.compare.cost_axes import CostName

MISSING = "\N{EN DASH}"

_UNITS: dict[CostName, tuple[tuple[float, str], ...]] = {
    "seconds": ((3600.0, "h"), (60.0, "min"), (1.0, "s")),
    "peak_memory_bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "flops": (
        (1e18, "EFLOP"),
        (1e15, "PFLOP"),
        (1e12, "TFLOP"),
        (1e9, "GFLOP"),
        (1e6, "MFLOP"),
        (1.0, "FLOP"),
    ),
    "tokens": ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "energy_joules": ((3.6e6, "kWh"), (3.6e3, "Wh"), (1.0, "J")),
    "money": ((1.0, ""),),
}


def percent(share: float) -> str:
    """A share as a whole percentage, `46 %`."""
    return f"{share * 100:z.0f} %"


def percent_interval(interval: Interval, digits: int = 0) -> str:
    """A share with its interval, `46 [40, 52] %`."""
    value, low, high = (f"{100 * end:z.{digits}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] %"


def points(interval: Interval) -> str:
    """A difference of two shares in percentage points, signed, `-4 [-9, +1] points`."""
    value, low, high = (f"{round(100 * end):+d}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] points"


def unit_for(cost: CostName, largest: float) -> tuple[float, str]:
    """Divisor and unit in which a cost up to `largest` reads well; a time of 90 s stays in seconds."""
    floor = 2 if cost == "seconds" else 1
    return next(((size, unit) for size, unit in _UNITS[cost] if largest >= floor * size), _UNITS[cost][-1])


def quantity(cost: CostName, value: float) -> str:
    """A cost with its unit, to three figures.

    >>> quantity("seconds", 150.0)
    '2.5 min'
    """
    size, unit = unit_for(cost, value)
    number = f"{value / size:,.0f}" if value >= 100 * size else f"{value / size:.3g}"
    return f"{number} {unit}".rstrip()
