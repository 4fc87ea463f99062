"""What a policy saves beside its uncut run, in words.

With the spread over seeds; a cost whose spread is as large as the saving is not told apart.
"""

from dataclasses import dataclass
from math import hypot

from leadspan.study.compare.cost_axes import COST_WORDS, Cost, CostName
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.words import percent, quantity

_SAME = 0.005
"""Shares closer to 1 than this read as 100 %."""


@dataclass(frozen=True, slots=True)
class _Beside:
    """One cost of a policy and of its uncut run, `share` the one's mean as a share of the other's."""

    name: CostName
    own: Cost
    whole: Cost
    share: float

    @property
    def is_told_apart(self) -> bool:
        """Whether the means differ by more than the standard deviation of a difference of two single runs."""
        return abs(self.own.value - self.whole.value) > hypot(self.own.sd or 0.0, self.whole.sd or 0.0)

    @property
    def is_same(self) -> bool:
        """Whether both read alike."""
        return abs(1 - self.share) < _SAME

    def figures(self, between: str) -> str:
        """`7 s ± 1 s instead of 10 s ± 1 s, sd over seeds`, without the spread where there is none to see."""
        texts = [_amount(self.name, cost) for cost in (self.own, self.whole)]
        spread = ", sd over seeds" if any("±" in text for text in texts) else ""
        return f"{texts[0]} {between} {texts[1]}{spread}"


def saves(frontier: Frontier, row: Row, cost: CostName) -> bool | None:
    """Whether a policy costs less than its uncut run; None where they read alike or seeds differ by as much."""
    found = _beside(frontier, row, cost)
    if found is None or found.is_same or not found.is_told_apart:
        return None
    return found.share < 1


def saved_text(frontier: Frontier, row: Row, cost: CostName) -> str:
    """` and saved 48 % of the time (5.2 min instead of 10 min) and 50 % of the tokens (...)`.

    Tokens stand beside every cost, time beside tokens. Where the policy does not save the cost, or that cannot be told
    apart from what seeds differ, FLOPs stand there too.
    """
    chosen = _beside(frontier, row, cost)
    is_plain = chosen is not None and chosen.is_told_apart and chosen.share < 1
    names: tuple[CostName, ...] = (cost, "tokens" if cost != "tokens" else "seconds")
    names = names if is_plain else (*names, "tokens", "flops")
    found = [beside for name in dict.fromkeys(names) if (beside := _beside(frontier, row, name)) is not None]
    moved = [one for one in found if one.is_told_apart and not one.is_same]
    verbs = {"saved": [one for one in moved if one.share < 1], "added": [one for one in moved if one.share > 1]}
    changes = [f"{verb} {' and '.join(map(_change, ones))}" for verb, ones in verbs.items() if ones]
    text = f" and {', but '.join(changes)}" if changes else ""
    same = [f"the same {COST_WORDS[one.name]} ({one.figures('and')})" for one in found if one.is_same]
    unclear = [
        f"its {COST_WORDS[one.name]} {'are' if COST_WORDS[one.name].endswith('s') else 'is'} not told apart from "
        f"{row.reference}'s ({one.figures('against')})"
        for one in found
        if not one.is_told_apart and not one.is_same
    ]
    return "; ".join([f"{text}{' and took ' + ' and '.join(same) if same else ''}", *unclear])


def relative_text(cost: Cost) -> str:
    """The mean as a share of the uncut run's, `50 ± 14 %`: with its standard deviation where that is half a percent."""
    assert cost.of_full is not None, "asked for costs beside an uncut run"
    spread = 100 * cost.of_full * (cost.sd or 0.0) / cost.value if cost.value else 0.0
    return percent(cost.of_full) if spread < 0.5 else f"{100 * cost.of_full:.0f} ± {spread:.0f} %"


def _beside(frontier: Frontier, row: Row, name: CostName) -> _Beside | None:
    full = frontier.row(row.reference)
    own, whole = (row.costs or {}).get(name), ((full.costs if full else None) or {}).get(name)
    return None if own is None or whole is None or own.of_full is None else _Beside(name, own, whole, own.of_full)


def _change(one: _Beside) -> str:
    return f"{percent(abs(1 - one.share))} of the {COST_WORDS[one.name]} ({one.figures('instead of')})"


def _amount(name: CostName, cost: Cost) -> str:
    is_spread = cost.sd is not None and cost.sd > _SAME * cost.value
    return quantity(name, cost.value) + (f" ± {quantity(name, cost.sd)}" if cost.sd is not None and is_spread else "")
