"""The break point of a family of cuts: the share of a trace from which on the target is kept, predicted and measured.

The policies of a study that differ in nothing but `p` are a family. Over its tested `p_1 < ... < p_K`, with the uncut
run at 1, retention r(p) is a curve with r(1) = 1. Its break point for a target t is the smallest p such that r is at
least t there and at every larger p, that is

    p* = p_k + (p_{k+1} - p_k) (t - r_k) / (r_{k+1} - r_k),    k the last tested p with r_k < t,

a straight line between two tested p. The interval does not depend on that line: in every bootstrap resample of the
problems (the same for all members, runs as a level above) p* lies somewhere in [p_k, p_{k+1}], and the interval reaches
from the (1 - level) / 2 quantile of the lower ends to the (1 + level) / 2 quantile of the upper ends. It reaches
farther where the interval of the retention at a single tested p, which covers more than resampling shows, includes the
target. Where every tested p of a resample keeps the target its lower end is 0, as nothing smaller was tried. Where the
largest tested p does not keep the target there is no value: beyond it is the uncut run alone, and no line to it was
tested.

A cut that removes the end-of-turn token at every p below 1, as a plain lead does without an appended stop, or the
answer at every p, as a window of the chain of thought does, has no curve that leads to the uncut run. For such a family
the end 1 says only that nothing larger was tried.

The prediction, made before training, is LSP* = (|P| + f |CoT|) / T from the first-answer positions of the traces, the
mean over the family's runs. It is defined for lead cuts only. It says from where on derivations are complete, and the
measurement says from where on the target is reached: the two need not agree at every target.

**Source**: the percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; the
definition is the project's own.
"""

import json
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from leadspan.data.truncation import Lead, Policy
from leadspan.errors import EvaluationError
from leadspan.report.inputs import flat
from leadspan.report.rows import Frontier, Row
from leadspan.settings import Settings, without
from leadspan.statistics.intervals import Interval, drawn_ratios, retention
from leadspan.statistics.resampling import USUAL, resample
from leadspan.tables import MISSING, percent


class BreakPoint(Settings):
    """The break point of one family of policies on one task."""

    family: str
    """What its members share, such as `lead`."""
    target: float
    """Retention to keep."""
    tested: tuple[float, ...]
    """The tested `p`, ascending: those below 1, and 1 itself where that is not the uncut run."""
    rows: tuple[str, ...]
    """Labels of their rows."""
    measured: Interval | None
    """Where retention reaches the target, with its interval; null where the tested `p` do not show it."""
    predicted: Interval | None
    """LSP* before training; null for other cuts than a lead, or where nothing was predicted."""
    reason: str | None = None
    """Why there is no measurement."""
    reference: str = "the uncut run"
    """Label of the uncut run."""
    between: tuple[float, float] | None = None
    """Ends of the interval, given even where `measured` is null: 0 where nothing smaller was tried, 1 for the uncut
    run; null where nothing could be compared."""
    not_predicted: str | None = None
    """Why there is no prediction."""
    is_continuous: bool = True
    """Whether the uncut run is the family's cut at 1, see the module's docstring."""


def break_points(frontier: Frontier, target: float = 0.9) -> list[BreakPoint]:
    """The break point of every family of a frontier, in the order of the rows.

    A family has at least two tested `p`, not counting a 1 that is the uncut run. Controls are no members. Families
    without an uncut run are left out.
    """
    families: dict[str, list[Row]] = {}
    for row in frontier.students:
        if row.control is not None or row.p is None or row.reference is None:
            continue
        # A cut of p = 1 that keeps the answer is the uncut run under another name.
        if row.p < 1 or not _policy(row).keeps_answer:
            # Its members differ in nothing but the seed and `p`.
            shared = without(flat(row.runs[0].recipe), ("cut.p", "cut.policy.p"))
            families.setdefault(json.dumps(shared, sort_keys=True), []).append(row)
    tested = [sorted(rows, key=lambda row: row.p or 0.0) for rows in families.values() if len(rows) > 1]
    names: list[str] = []
    for rows in tested:
        recipe = rows[0].runs[0].recipe
        axes = recipe.trial.axes if recipe and recipe.trial else []
        names.append(", ".join([_policy(rows[0]).family, *axes]))
    points: list[BreakPoint] = []
    for name, rows in zip(names, tested, strict=True):
        # Families that share the cut and the axes are told apart by their rows.
        labels = f" ({'; '.join(row.label for row in rows)})" if names.count(name) > 1 else ""
        points.append(_break_point(name + labels, rows, frontier, target))
    return points


def _break_point(name: str, rows: Sequence[Row], frontier: Frontier, target: float) -> BreakPoint:
    full = frontier.row(rows[0].reference)
    assert full is not None, "a reference has a row"
    measured, reason, between = _measured(rows, full, target)
    predictions = [run.prediction for row in rows for run in row.runs if run.prediction]
    predicted, not_predicted = None, None
    if not isinstance(_policy(rows[0]).inner, Lead):
        not_predicted = "LSP* is defined for leads only"
    elif not predictions:
        not_predicted = "it is part of the prediction of costs, which these runs lack"
    elif points := [prediction.break_point for prediction in predictions if prediction.break_point]:
        # Means of the ends too: seeds differ little, because they only split the same traces anew.
        ends = {name: fmean(getattr(interval, name) for interval in points) for name in ("value", "low", "high")}
        predicted = points[0].model_copy(update=ends)
    # Not searched, and searched in vain, have different remedies.
    elif all(prediction.break_point_traces is None for prediction in predictions):
        not_predicted = "the traces of these runs were not searched for their first answer"
    else:
        not_predicted = "no trace was found to state its right answer in the chain of thought"
    return BreakPoint(
        family=name,
        target=target,
        tested=tuple(row.p for row in rows if row.p is not None),
        rows=tuple(row.label for row in rows),
        measured=measured,
        predicted=predicted,
        reason=reason,
        reference=full.label,
        between=between,
        not_predicted=not_predicted,
        is_continuous=_policy(rows[0]).nears_full,
    )


def _measured(
    rows: Sequence[Row], full: Row, target: float
) -> tuple[Interval | None, str | None, tuple[float, float] | None]:
    """The measured break point, else the reason why there is none, and the ends of its interval where there are any."""
    if not 0 < target <= 1:
        rule = "is no share of the uncut run's accuracy; ask for more than 0, at most 1"
        return None, f"a target of {target:g} {rule}", None
    # Two points above one p would be no curve.
    if len({row.p for row in rows}) < len(rows):
        return None, f"one p was tested twice ({', '.join(row.label for row in rows)}); give each once", None
    # Other problems, or answers that were sampled in another way.
    if apart := next((row.retention.reason for row in rows if row.retention and not row.retention.difference), None):
        return None, apart, None
    # A seed that one member lacks would break the pairing of the others; without a shared seed all runs are taken.
    seeds = [seed for seed in full.seeds if all(seed in row.seeds for row in rows)]
    scores = {row.label: row.scores(seeds or row.seeds) for row in [full, *rows]}
    try:
        refused = retention(scores[rows[0].label], scores[full.label]).reason
        models = dict(zip(scores, resample(scores, USUAL), strict=True))
    except EvaluationError as error:
        return None, str(error), None
    if refused:
        return None, refused, None
    # The uncut run closes the curve at 1, where it keeps all of its own accuracy in every resample.
    cuts = np.array([*(row.p for row in rows), 1.0], dtype=float)
    of_full = models[full.label]
    # One column: the curve that was measured, beside the resampled curves below.
    means = np.array([[models[row.label].mean / of_full.mean] for row in rows] + [[1.0]])
    # The resamples are paired: draw i of every policy and of the uncut run holds the same problems.
    ratios_drawn = [drawn_ratios(np.maximum(models[row.label].draws, 0), of_full.draws) for row in rows]
    _, lower_ends, upper_ends = crossing(cuts, np.stack([*ratios_drawn, np.ones_like(of_full.draws)]), target)
    # `inverted_cdf` returns a tested cut or 0, where interpolation would return a p that nobody tested.
    low = np.quantile(lower_ends, (1 - USUAL.level) / 2, method="inverted_cdf")
    high = np.quantile(upper_ends, (1 + USUAL.level) / 2, method="inverted_cdf")
    # `retention` widens its intervals where few problems separate the models, which resamples alone do not show: the
    # ends reach at least to the nearest cuts whose own interval excludes the target, else to 0 and to the uncut run.
    ratios = [retention(scores[row.label], scores[full.label]).ratio for row in rows]
    alone = [ratio for ratio in ratios if ratio is not None]
    assert len(alone) == len(rows), "the uncut run refuses all ratios or none"
    below = [cut for cut, ratio in zip(cuts[:-1], alone, strict=True) if ratio.high < target]
    unsure = [index for index, ratio in enumerate(alone) if ratio.low < target]
    between = (
        min(float(low), float(below[-1]) if below else 0.0),
        max(float(high), float(cuts[unsure[-1] + 1]) if unsure else float(cuts[0])),
    )
    value, last_below = (float(of_curve[0]) for of_curve in crossing(cuts, means, target)[:2])
    reason = _why_not_measured(rows, full, means[:-1, 0], target, None if np.isnan(value) else last_below)
    if reason:
        return None, reason, between
    method = "paired bootstrap of the tested p between which retention reaches the target"
    return Interval(value=value, low=between[0], high=between[1], level=USUAL.level, method=method), None, between


def _why_not_measured(
    rows: Sequence[Row], full: Row, ratios: NDArray[np.float64], target: float, last_below: float | None
) -> str | None:
    """Why the tested p, of which `last_below` is the last below the target, show no break point; None where they do."""
    tested = [row.p or 0.0 for row in rows]
    if last_below is None:
        return (
            f"every tested p, from {tested[0]:g} on, keeps {percent(target, None)} of {full.label}'s accuracy: the "
            f"break point is at or below {tested[0]:g}; test smaller p"
        )
    # A tested p behind the last one below the target reaches it: the line between the two is measured.
    if last_below < tested[-1]:
        return None
    reached = [f"{p:g}" for p, ratio in zip(tested, ratios, strict=True) if ratio >= target]
    outcome = f"{', '.join(reached)} kept it, but {tested[-1]:g}, the largest tested p, does not"
    outcome = outcome if reached else f"no tested p up to {tested[-1]:g} keeps it"
    if _policy(rows[0]).nears_full:
        return f"{outcome}: it lies between {tested[-1]:g} and uncut"
    return (
        f"{outcome}, and these cuts do not become {full.label} at p = 1, because each of them removes the end-of-turn "
        "token or the answer"
    )


def _policy(row: Row) -> Policy:
    policy = row.runs[0].policy
    assert policy is not None, "a row with a p has a cut"
    return policy


def crossing(
    cuts: NDArray[np.float64], ratios: NDArray[np.float64], target: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where piecewise linear curves reach the target for the last time, and remain at or above it.

    Args:
        cuts: `[K]`, ascending.
        ratios: `[K, curves]`; the last cut reaches the target in each.
        target: The height.

    Returns:
        The crossing of each curve, and the cuts on its left and on its right; NaN, 0 and the first cut for a curve that
        is nowhere below the target.
    """
    # Ratios of means that are equal on paper differ by about 1e-16.
    is_below = ratios < target - 1e-12
    # `argmax` finds the first, so the rows are read from the end.
    last = np.where(is_below.any(axis=0), len(ratios) - 1 - is_below[::-1].argmax(axis=0), -1)
    left, columns = np.maximum(last, 0), np.arange(ratios.shape[1])
    low, high = ratios[left, columns], ratios[left + 1, columns]
    # A curve that is nowhere below the target may divide by 0 here; the last line sets it to NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        p = cuts[left] + (cuts[left + 1] - cuts[left]) * (target - low) / (high - low)
    return np.where(last < 0, np.nan, p), np.where(last < 0, 0.0, cuts[left]), cuts[last + 1]


def measured_text(point: BreakPoint) -> str:
    """The measured break point with its interval, `0.36 (95 % interval: from 0.25 to uncut)`, or why there is none."""
    if point.measured is None:
        return point.reason or MISSING
    level, ends = percent(point.measured.level), _ends_text(point, point.measured.low, point.measured.high)
    return f"{point.measured.value:.2f} ({level} interval: {ends})"


def break_point_sentence(point: BreakPoint) -> str:
    """From where on a family keeps the target, and what was predicted."""
    if point.measured is None:
        target = f"{percent(point.target, None)} of {point.reference}'s accuracy"
        text = f"{point.family}: no break point for {target}: {point.reason}"
        text += f" (interval: {_ends_text(point, *point.between)})" if point.between else ""
    else:
        measured = f"p = {measured_text(point)}"
        text = f"{point.family}: keeps {percent(point.target, None)} of {point.reference}'s accuracy from {measured} on"
    if point.predicted is None:
        return f"{text}; not predicted: {point.not_predicted}." if point.not_predicted else f"{text}."
    ends = f"{point.predicted.value:.2f} [{point.predicted.low:.2f}, {point.predicted.high:.2f}]"
    return f"{text}; derivations were predicted to be complete from {ends} on."


def _ends_text(point: BreakPoint, low: float, high: float) -> str:
    """The ends of the interval; where one is 0 or 1, beyond the tested p, that nothing there was tried."""
    # 0 and 1 are no measurements but the ends of what can be tried; all others are tested p.
    untried = [f"nothing below {point.tested[0]:g} was tried"] if low == 0 else []
    if high == 1 and not point.is_continuous:
        untried += [f"nothing above {point.tested[-1]:g} was tried"] if point.tested[-1] < 1 else []
        ends = f"from {low:g} on" if low else "anywhere"
    else:
        upper = "uncut" if high == 1 else f"{high:g}"
        ends = f"from {low:g} to {upper}" if low else f"up to {upper}"
    return "; ".join([ends, *untried])
