"""From which share of a trace on a cut keeps what is asked: predicted before training, measured after.

The policies of a study that differ in nothing but `p` are a family. Over its tested `p_1 < ... < p_K`, with the uncut
run at 1, retention r(p) is a curve with r(1) = 1. Its break point for a target t is the smallest p such that r is at
least t there and at every larger p, that is

    p* = p_k + (p_{k+1} - p_k) (t - r_k) / (r_{k+1} - r_k),    k the last tested place with r_k < t,

a straight line between two tested places. The interval does not lean on that line: in every bootstrap resample of the
problems (the same for all members, runs as a level above) p* lies somewhere in [p_k, p_{k+1}], and the interval reaches
from the (1 - level) / 2 quantile of the lower ends to the (1 + level) / 2 quantile of the upper ends, and farther where
a tested place's own retention, whose interval holds more than resamples show, is not told from the target. Where every
tested p of a resample keeps the target its lower end is 0, as nothing smaller was tried. Where the largest tested p
does not keep the target there is no value: right of it stands the uncut run alone, and no line to it was tested.

A cut that takes the end-of-turn token away at every p below 1, as a plain lead does without an appended stop, or the
answer at every p, as a window of the chain of thought does, has no curve that leads to the uncut run. Of such a family
the end 1 says only that nothing larger was tried.

The prediction is LSP* = (|P| + f |CoT|) / T from the first-answer positions of the traces, the mean over the family's
runs. It speaks of a lead cut, so that other families have none. It says where derivations begin to be whole, and the
measurement where the target is met: they need not agree at every target.

**Source**: the percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; the
definition is the project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from leadspan.errors import EvaluationError
from leadspan.evaluation.resampling import USUAL, Bootstrap, Scores, resample
from leadspan.evaluation.statistics import retention
from leadspan.results import Interval, RunResult
from leadspan.study.compare.conditions import cut_of, family_key, seed_of
from leadspan.study.compare.crossings import bracket_interval, crossing, last_below, widened
from leadspan.study.compare.rows import Frontier, Row

_LOSE_THE_STOP = ("lead", "middle")
"""Cuts that lose the end-of-turn token at every p below 1, unless one is appended or some traces stay whole."""
_NEVER_WHOLE = ("lead_cot", "random_window")
"""Cuts that keep no answer at any p: their p = 1 is not the uncut run."""
METHOD = "paired bootstrap of the places between which retention meets the target"


@dataclass(frozen=True, slots=True)
class BreakPoint:
    """The break point of one family of policies on one task.

    Attributes:
        family: What its members share, e.g. `lead`.
        target: Retention that is asked for.
        tested: The tested `p`, ascending: those below 1, and 1 itself where that is not the uncut run.
        rows: Labels of their rows.
        measured: Where retention meets the target, with its interval; absent where it cannot be told.
        predicted: LSP* before training; absent for other cuts than a lead, or where nothing was predicted.
        reason: Why there is no measurement.
        reference: Label of the uncut run.
        between: Ends of the interval, with or without a value: 0 where nothing smaller was tried, 1 for the uncut run;
            absent where nothing could be compared.
        not_predicted: Why there is no prediction.
        is_continuous: Whether the uncut run is the family's cut at 1, see above.
    """

    family: str
    target: float
    tested: tuple[float, ...]
    rows: tuple[str, ...]
    measured: Interval | None
    predicted: Interval | None
    reason: str | None = None
    reference: str = "the uncut run"
    between: tuple[float, float] | None = None
    not_predicted: str | None = None
    is_continuous: bool = True


@dataclass(frozen=True, slots=True)
class _Measured:
    value: Interval | None = None
    reason: str | None = None
    between: tuple[float, float] | None = None


def break_points(frontier: Frontier, target: float = 0.9, bootstrap: Bootstrap = USUAL) -> list[BreakPoint]:
    """The break point of every family of a frontier, in the order of the rows.

    A family has two tested `p` or more, 1 not counted where it is the uncut run; controls are no members. It is
    compared with its own uncut run; one without is left out.
    """
    families: dict[str, list[Row]] = {}
    for row in frontier.students:
        if row.control is None and row.p is not None and row.reference is not None and (row.p < 1 or _never_whole(row)):
            families.setdefault(family_key(row.runs[0].recipe), []).append(row)
    return [
        _break_point(sorted(rows, key=lambda row: row.p or 0.0), frontier, target, bootstrap)
        for rows in families.values()
        if len(rows) > 1
    ]


def _break_point(rows: Sequence[Row], frontier: Frontier, target: float, bootstrap: Bootstrap) -> BreakPoint:
    full = frontier.row(rows[0].reference)
    assert full is not None, "a reference has a row"
    measured = _measured(rows, full, target, bootstrap)
    predicted = _predicted([run for row in rows for run in row.runs])
    return BreakPoint(
        family=_family_name(rows[0]),
        target=target,
        tested=tuple(row.p for row in rows if row.p is not None),
        rows=tuple(row.label for row in rows),
        measured=measured.value,
        predicted=predicted,
        reason=measured.reason,
        reference=full.label,
        between=measured.between,
        not_predicted=None if predicted else _why_not_predicted([run for row in rows for run in row.runs]),
        is_continuous=_is_continuous(rows[0]),
    )


def _measured(rows: Sequence[Row], full: Row, target: float, bootstrap: Bootstrap) -> _Measured:
    if not 0 < target <= 1:
        return _Measured(
            reason=f"a target of {target:g} is no share of the uncut run's accuracy; ask for more than 0, at most 1"
        )
    if len({row.p for row in rows}) < len(rows):
        return _Measured(reason=f"one p was tested twice ({', '.join(row.label for row in rows)}); give each once")
    seeds = [seed for seed in _seeds(full) if all(seed in _seeds(row) for row in rows)]
    scores = {row.label: _scores(row, seeds) for row in [full, *rows]}
    try:
        refused = retention(scores[rows[0].label], scores[full.label], bootstrap).reason
        models = dict(zip(scores, resample(scores, bootstrap), strict=True))
    except EvaluationError as error:
        return _Measured(reason=str(error))
    if refused:
        return _Measured(reason=refused)
    places = np.array([*(row.p for row in rows), 1.0], dtype=float)
    whole = models[full.label]
    means = np.array([[models[row.label].mean / whole.mean] for row in rows] + [[1.0]])
    drawn = np.stack([_ratios(models[row.label].draws, whole.draws) for row in rows] + [np.ones_like(whole.draws)])
    ratios = (retention(scores[row.label], scores[full.label], bootstrap).ratio for row in rows)
    alone = [ratio for ratio in ratios if ratio is not None]
    assert len(alone) == len(rows), "the uncut run refuses all ratios or none"
    low, high = widened(places, alone, target, bracket_interval(places, drawn, target, bootstrap.level))
    reason = _why_not_measured(rows, full, means[:, 0], target)
    if reason:
        return _Measured(reason=reason, between=(low, high))
    (value,) = crossing(places, means, target)
    measured = Interval(value=float(value), low=low, high=high, level=bootstrap.level, method=METHOD)
    return _Measured(measured, between=(low, high))


def _why_not_measured(rows: Sequence[Row], full: Row, kept: NDArray[np.float64], target: float) -> str | None:
    """Why the tested p hold no place from which on the target is met; None where they do."""
    (last,) = last_below(kept[:, None], target)
    tested = [row.p or 0.0 for row in rows]
    if last < 0:
        return (
            f"every tested p, from {tested[0]:g} on, keeps {target:.0%} of {full.label}'s accuracy: the break point is "
            f"at or below {tested[0]:g}; test smaller p"
        )
    if last < len(rows) - 1:
        return None
    met = [f"{p:g}" for p, ratio in zip(tested, kept, strict=False) if ratio >= target]
    found = f"{', '.join(met)} kept it, but {tested[-1]:g}, the largest tested p, does not"
    found = found if met else f"no tested p up to {tested[-1]:g} keeps it"
    if _is_continuous(rows[0]):
        return f"{found}: it lies between {tested[-1]:g} and uncut"
    return (
        f"{found}, and {full.label} is not what these cuts lead to at p = 1, as each of them takes the end-of-turn "
        "token or the answer away"
    )


def _is_continuous(row: Row) -> bool:
    """Whether the cut leads to the uncut run as p goes to 1: not where every p below 1 loses the end-of-turn token."""
    cut = cut_of(row.runs[0])
    keeps_stop = cut.get("kind") not in _LOSE_THE_STOP or cut.get("stop", "none") != "none"
    return keeps_stop and not _never_whole(row)


def _never_whole(row: Row) -> bool:
    cut = cut_of(row.runs[0])
    return (cut.get("policy") or {} if cut.get("kind") == "mix" else cut).get("kind") in _NEVER_WHOLE


def _ratios(policy: NDArray[np.float64], full: NDArray[np.float64]) -> NDArray[np.float64]:
    """Retention in every resample; without bound where a resample has nothing to keep."""
    return np.divide(np.maximum(policy, 0), full, out=np.full_like(policy, np.inf), where=full > 0)


def _seeds(row: Row) -> list[int]:
    return [seed_of(run) for run in row.runs]


def _scores(row: Row, seeds: Sequence[int]) -> list[Scores]:
    """Scores of the runs of some seeds, of all runs where no seed is shared."""
    return [
        found.correct
        for run, found in zip(row.runs, row.evaluations, strict=True)
        if not seeds or seed_of(run) in seeds
    ]


def _is_lead(run: RunResult) -> bool:
    cut = cut_of(run)
    return (cut.get("policy") or {} if cut.get("kind") == "mix" else cut).get("kind") == "lead"


def _why_not_predicted(runs: Sequence[RunResult]) -> str:
    if not _is_lead(runs[0]):
        return "LSP* speaks of leads alone"
    if all(run.prediction is None for run in runs):
        return "these runs were made without a prediction of their costs, which it is part of"
    if all(run.prediction is None or run.prediction.break_point_traces is None for run in runs):
        return "these runs were made without a search for the first answer in their traces"
    return "no trace was found to state its right answer in the chain of thought"


def _predicted(runs: Sequence[RunResult]) -> Interval | None:
    """Mean of the predictions and of their ends; they differ little, as seeds only split the same traces anew."""
    found = [run.prediction.break_point if run.prediction else None for run in runs]
    known = [interval for interval in found if interval is not None]
    if not known or not _is_lead(runs[0]):
        return None
    ends = {name: fmean(getattr(interval, name) for interval in known) for name in ("value", "low", "high")}
    return known[0].model_copy(update=ends)


def _family_name(row: Row) -> str:
    """The row's label with its last number, `p`, taken out of the cut's part."""
    label = row.runs[0].label
    head, _, tail = label.rpartition(f" {row.p:g}")
    return head + tail + row.label.removeprefix(label) if head and row.label.startswith(label) else row.label
