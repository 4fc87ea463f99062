"""What a policy saves against its uncut run, in words.

A saving that is no larger than the variation over seeds is called unclear.
"""

from dataclasses import dataclass
from math import hypot

from leadspan.report.costs import COST_WORDS, Cost
from leadspan.report.rows import Frontier, Row
from leadspan.tables import CostName, percent, quantity

_SAME = 0.005
"""Shares closer to 1 than this read as 100 %."""


@dataclass(frozen=True, slots=True)
class _Saving:
    """One cost of a policy and of its uncut run; `share` is the ratio of their means."""

    name: CostName
    cost: Cost
    full: Cost
    share: float

    @property
    def is_clear(self) -> bool:
        """Whether the means differ by more than the standard deviation of the difference between two single runs."""
        # Variances add: the spread of a difference is the root of the sum of squares.
        return abs(self.cost.value - self.full.value) > hypot(self.cost.sd or 0.0, self.full.sd or 0.0)

    @property
    def is_same(self) -> bool:
        """Whether both are the same when rounded to percent."""
        return abs(1 - self.share) < _SAME

    def figures(self, between: str) -> str:
        """`7 s ± 1 s instead of 10 s ± 1 s, sd over seeds`, without a standard deviation that rounds to nothing."""
        texts: list[str] = []
        for cost in (self.cost, self.full):
            is_spread = cost.sd is not None and cost.sd > _SAME * cost.value
            spread = f" ± {quantity(self.name, cost.sd)}" if cost.sd is not None and is_spread else ""
            texts.append(quantity(self.name, cost.value) + spread)
        return f"{texts[0]} {between} {texts[1]}" + (", sd over seeds" if any("±" in text for text in texts) else "")


def saves(frontier: Frontier, row: Row, cost: CostName) -> bool | None:
    """Whether a policy costs less than its uncut run; None where the difference is within rounding or seed noise."""
    saving = _saving(frontier, row, cost)
    if saving is None or saving.is_same or not saving.is_clear:
        return None
    return saving.share < 1


def saved_text(frontier: Frontier, row: Row, cost: CostName) -> str:
    """` and saved 48 % of the time (5.2 min instead of 10 min) and 50 % of the tokens (...)`.

    The sentence adds tokens to every cost, and time to tokens where times can be compared. Where the policy does not
    save the cost, or that is unclear, it adds FLOPs too.
    """
    chosen = _saving(frontier, row, cost)
    saves_it = chosen is not None and chosen.is_clear and chosen.share < 1
    names: tuple[CostName, ...] = (cost, "tokens" if cost != "tokens" else "seconds")
    # Where this cost gives no reason to choose the policy, a reader wants to know whether another does.
    names = names if saves_it else (*names, "tokens", "flops")
    savings = [saving for name in dict.fromkeys(names) if (saving := _saving(frontier, row, name)) is not None]
    # What is within rounding or seed noise is no saving, and is said apart.
    clear = [saving for saving in savings if saving.is_clear and not saving.is_same]
    changes: list[str] = []
    for verb, moved in (("saved", [s for s in clear if s.share < 1]), ("added", [s for s in clear if s.share > 1])):
        of_costs = [f"{percent(abs(1 - s.share))} of the {COST_WORDS[s.name]}" for s in moved]
        texts = [f"{text} ({s.figures('instead of')})" for text, s in zip(of_costs, moved, strict=True)]
        changes += [f"{verb} {' and '.join(texts)}"] if texts else []
    text = f" and {', but '.join(changes)}" if changes else ""
    same = [f"the same {COST_WORDS[s.name]} ({s.figures('and')})" for s in savings if s.is_same]
    unclear = [
        f"whether it saves {COST_WORDS[s.name]} is unclear ({s.figures('against')})"
        for s in savings
        if not s.is_clear and not s.is_same
    ]
    return "; ".join([f"{text}{' and took ' + ' and '.join(same) if same else ''}", *unclear])


def _saving(frontier: Frontier, row: Row, name: CostName) -> _Saving | None:
    if name == "seconds" and frontier.clock:
        return None  # such times say more about the machine than about the policy
    full = frontier.row(row.reference)
    cost, of_full = ((side.costs or {}).get(name) if side else None for side in (row, full))
    if cost is None or of_full is None or cost.of_full is None:
        return None
    return _Saving(name, cost, of_full, cost.of_full)
