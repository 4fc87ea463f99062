from collections.abc import Callable

import numpy as np
import pytest

from leadspan.results import Interval, Prediction, RunResult
from leadspan.study.break_points import BreakPoint, bracket, break_points, crossing
from leadspan.study.frontier import build_frontiers
from leadspan.study.sentences import break_point_sentences

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}


def runs_of(make_run: MakeRun, kept: dict[float, int], full: int = 300, seeds: int = 3) -> list[RunResult]:
    """Runs of 400 problems: how many each p gets right."""
    found = [make_run("full", full, FULL, seed=seed, num_problems=400) for seed in range(seeds)]
    for p, right in kept.items():
        cut = {"kind": "lead", "p": p}
        found += [make_run(f"lead {p:g}", right, cut, seed=seed, num_problems=400) for seed in range(seeds)]
    return found


def only(runs: list[RunResult], target: float = 0.9) -> BreakPoint:
    (frontier,) = build_frontiers(runs)
    (found,) = break_points(frontier, target)
    return found


def test_the_crossing_is_on_the_line_between_the_places_around_it() -> None:
    places = np.array([0.25, 0.5, 1.0])
    kept = np.array([[0.2, 0.95, 0.95, 0.5], [0.7, 0.95, 0.6, 0.9], [1.0, 1.0, 1.0, 1.0]])
    assert crossing(places, kept, 0.9) == pytest.approx([0.5 + 0.5 * 0.2 / 0.3, np.nan, 0.875, 0.5], nan_ok=True)
    low, high = bracket(places, kept, 0.9)
    assert (low.tolist(), high.tolist()) == ([0.5, 0.0, 0.5, 0.25], [1.0, 0.25, 1.0, 0.5])


def test_the_measured_break_point_lies_where_retention_reaches_the_target(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 90, 0.5: 240, 0.75: 297}))
    assert found.family == "lead" and found.tested == (0.25, 0.5, 0.75) and found.reason is None
    assert found.measured is not None
    assert found.measured.value == pytest.approx(0.5 + 0.25 * (0.9 - 0.8) / (0.99 - 0.8))
    assert (found.measured.low, found.measured.high) == (0.5, 0.75)  # surely between these two


def test_noise_at_a_tested_place_widens_the_interval_beyond_it(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 90, 0.5: 268, 0.75: 297}))  # 0.89 kept at p = 0.5
    assert found.measured is not None and 0.5 < found.measured.value < 0.75
    assert (found.measured.low, found.measured.high) == (0.25, 0.75)


def test_a_dip_behind_a_good_place_moves_the_break_point_behind_the_dip(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 295, 0.5: 150, 0.75: 298}))
    assert found.measured is not None and found.measured.low == 0.5


def test_where_every_tested_place_keeps_the_target_the_break_point_is_refused(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 299, 0.5: 299}))
    assert found.measured is None and found.reason is not None
    assert "every tested p, from 0.25 on, keeps 90%" in found.reason and "test smaller p" in found.reason


def test_it_is_refused_where_the_uncut_run_is_near_zero(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 1, 0.5: 2}, full=3))
    assert found.measured is None and found.reason is not None and "lower bound" in found.reason


def test_one_tested_place_is_no_family(make_run: MakeRun) -> None:
    (frontier,) = build_frontiers(runs_of(make_run, {0.5: 240}))
    assert break_points(frontier) == []


def test_the_interval_covers_the_true_break_point(make_run: MakeRun) -> None:
    """Problems solved by chance: retention 0.6, 0.8, 0.95 at p = 0.25, 0.5, 0.75, so that 0.9 is met between."""
    chances = {1.0: 0.7, 0.25: 0.42, 0.5: 0.56, 0.75: 0.665}
    generator, num_problems, hits = np.random.default_rng(0), 200, 0
    for _ in range(40):
        runs = runs_of(make_run, {0.25: 0, 0.5: 0, 0.75: 0}, seeds=1)
        for place, (run, chance) in enumerate(zip(runs, chances.values(), strict=True)):
            right = (generator.random(num_problems) < chance).astype(int)
            scores = {f"p{i}": [int(score)] for i, score in enumerate(right)}
            runs[place] = run.model_copy(
                update={"evaluations": [run.evaluations[0].model_copy(update={"correct": scores})]}
            )
        (frontier,) = build_frontiers(runs)
        (found,) = break_points(frontier)
        truth = 0.5 + 0.25 * 0.1 / 0.15
        hits += found.measured is None or found.measured.low <= truth <= found.measured.high
    assert hits >= 36


def test_without_a_prediction_the_sentence_gives_the_measurement_alone(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 90, 0.5: 240}))
    assert found.predicted is None
    assert break_point_sentences([found]) == [
        f"lead: keeps 90 % of full's accuracy from p = 0.75 [{found.measured.low:.2f}, 1.00] on."
        if found.measured
        else ""
    ]


def test_the_prediction_of_a_lead_stands_beside_the_measurement(make_run: MakeRun) -> None:
    values = {"num_steps": 1, "num_tokens": 1, "num_weighted_tokens": 1, "flops": {}, "memory": {}}
    runs = runs_of(make_run, {0.25: 90, 0.5: 240})
    for place, run in enumerate(runs):
        point = Interval(value=0.5 + place % 2 / 10, low=0.4, high=0.7)
        prediction = Prediction.model_validate({**values, "break_point": point})
        runs[place] = run.model_copy(update={"prediction": prediction})
    found = only(runs)
    assert found.predicted is not None and found.predicted.value == pytest.approx(0.55)  # of three and three runs
    assert break_point_sentences([found])[0].endswith(
        "; derivations were predicted to be whole from 0.55 [0.40, 0.70] on."
    )
