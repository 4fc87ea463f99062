from collections.abc import Callable

import numpy as np
import pytest

from leadspan.report.break_points import BreakPoint, break_point_sentence, break_points, crossing, measured_text
from leadspan.report.frontier import build_frontiers
from leadspan.results import Prediction, RunResult
from leadspan.statistics.intervals import Interval

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
    p, low, high = crossing(places, kept, 0.9)
    assert p == pytest.approx([0.5 + 0.5 * 0.2 / 0.3, np.nan, 0.875, 0.5], nan_ok=True)
    assert (low.tolist(), high.tolist()) == ([0.5, 0.0, 0.5, 0.25], [1.0, 0.25, 1.0, 0.5])


@pytest.mark.slow
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
    assert "every tested p, from 0.25 on, keeps 90 %" in found.reason and "test smaller p" in found.reason


def test_it_is_refused_where_the_uncut_run_is_near_zero(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 1, 0.5: 2}, full=3))
    assert found.measured is None and found.reason is not None and "lower bound" in found.reason


def test_a_family_shares_all_but_seed_and_proportion(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400)]
    for p, seed, rate in ((0.25, 1, 1e-3), (0.5, 0, 1e-3), (0.25, 0, 1e-4), (0.75, 0, 1e-4)):
        settings = {"training": {"learning_rate": rate}}
        cut = {"kind": "lead", "p": p}
        runs.append(make_run(f"lead {p:g}", 240, cut, seed=seed, settings=settings, num_problems=400))
    (frontier,) = build_frontiers(runs)
    assert [point.tested for point in break_points(frontier)] == [(0.25, 0.5), (0.25, 0.75)]


def test_one_tested_place_is_no_family(make_run: MakeRun) -> None:
    (frontier,) = build_frontiers(runs_of(make_run, {0.5: 240}))
    assert break_points(frontier) == []


@pytest.mark.slow
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
                update={"evaluations": [run.evaluations[0].model_copy(update={"correct": scores, "num_problems": 200})]}
            )
        (frontier,) = build_frontiers(runs)
        (found,) = break_points(frontier)
        truth = 0.5 + 0.25 * 0.1 / 0.15
        hits += found.measured is None or found.measured.low <= truth <= found.measured.high
    assert hits >= 36


def mixes(make_run: MakeRun, kept: dict[float, int], kind: str = "lead") -> list[RunResult]:
    """An uncut run, called `full, checked`, and mixes of one seed."""
    runs = [make_run("full", 300, FULL, num_problems=400, name="full, checked")]
    cuts = {p: {"kind": "mix", "whole_share": 0.1, "policy": {"kind": kind, "p": p}} for p in kept}
    return [*runs, *(make_run(f"mix 0.9 {kind} {p:g}", kept[p], cuts[p], num_problems=400) for p in kept)]


def test_the_sentence_names_the_uncut_run_and_says_why_nothing_was_predicted(make_run: MakeRun) -> None:
    found = only(mixes(make_run, {0.25: 90, 0.5: 240, 0.75: 297}))
    assert found.predicted is None and found.measured is not None
    assert [break_point_sentence(found)] == [
        "mix 0.9 lead: keeps 90 % of full, checked's accuracy from p = 0.63 (95 % interval: from 0.5 to 0.75) on; not "
        "predicted: it is part of the prediction of costs, which these runs lack."
    ]
    tails = only(mixes(make_run, {0.25: 90, 0.5: 297}, "tail"))
    assert tails.not_predicted == "LSP* is defined for leads only"


@pytest.mark.parametrize(
    ("traces", "reason"), [(None, "were not searched for their first answer"), (40, "no trace was found to state")]
)
def test_runs_that_found_no_first_answer_say_why(make_run: MakeRun, traces: int | None, reason: str) -> None:
    values = {"num_steps": 1, "num_tokens": 1, "num_weighted_tokens": 1, "flops": {}, "memory": {}}
    prediction = Prediction.model_validate({**values, "break_point_traces": traces})
    runs = runs_of(make_run, {0.25: 90, 0.5: 297}, seeds=1)
    found = only([run.model_copy(update={"prediction": prediction}) for run in runs])
    assert found.not_predicted is not None and reason in found.not_predicted


def test_right_of_the_last_tested_place_no_value_is_given(make_run: MakeRun) -> None:
    found = only(mixes(make_run, {0.25: 90, 0.5: 150, 0.75: 240}))
    assert found.measured is None and found.between == (0.75, 1.0)
    assert found.reason == "no tested p up to 0.75 keeps it: it lies between 0.75 and uncut"
    assert measured_text(found) == found.reason
    (sentence,) = [break_point_sentence(found)]
    assert "no break point for 90 % of full, checked's accuracy: no tested p up to 0.75 keeps it" in sentence
    assert "(interval: from 0.75 to uncut)" in sentence


def test_a_dip_at_the_last_tested_place_names_those_that_kept_it(make_run: MakeRun) -> None:
    found = only(mixes(make_run, {0.25: 90, 0.5: 299, 0.75: 240}))
    assert found.measured is None and found.reason is not None
    assert found.reason.startswith("0.5 kept it, but 0.75, the largest tested p, does not: it lies between")


@pytest.mark.slow
def test_the_uncut_run_is_no_end_of_a_lead_that_takes_the_stop_away(make_run: MakeRun) -> None:
    found = only(runs_of(make_run, {0.25: 90, 0.5: 150}))
    assert found.measured is None and found.reason is not None and not found.is_continuous
    assert "these cuts do not become full at p = 1" in found.reason and "uncut" not in found.reason
    (sentence,) = [break_point_sentence(found)]
    assert "(interval: from 0.5 on; nothing above 0.5 was tried)" in sentence and "to uncut" not in sentence
    inside = only(runs_of(make_run, {0.25: 90, 0.5: 268, 0.75: 272}))  # the last is noisy too
    assert inside.measured is not None and inside.measured.high == 1.0
    assert "from 0.25 on; nothing above 0.75 was tried" in measured_text(inside)


def test_an_appended_stop_makes_the_uncut_run_the_end_of_a_lead(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400)]
    for p, right in ((0.25, 90), (0.5, 150)):
        runs.append(make_run(f"lead {p}", right, {"kind": "lead", "p": p, "stop": "append_eos"}, num_problems=400))
    found = only(runs)
    assert found.is_continuous and found.reason is not None and found.reason.endswith("between 0.5 and uncut")


@pytest.mark.parametrize("kind", ["lead_cot", "random_window"])
def test_a_cut_that_keeps_no_answer_is_tested_at_1_too(make_run: MakeRun, kind: str) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400)]
    for p, right in ((0.5, 90), (0.9, 280), (1.0, 150)):
        cut = {"kind": "mix", "policy": {"kind": kind, "p": p}, "whole_share": 0.1}
        runs.append(make_run(f"mix 0.9 {kind} {p:g}", right, cut, num_problems=400))
    found = only(runs)
    assert found.tested == (0.5, 0.9, 1.0) and found.measured is None and not found.is_continuous
    assert found.reason is not None and "0.9 kept it, but 1, the largest tested p, does not" in found.reason
    assert "uncut" not in found.reason


def test_the_interval_reaches_as_far_as_retention_is_unsure(make_run: MakeRun) -> None:
    runs = [make_run("full", 40, FULL, num_problems=40)]
    for p, right in ((0.25, 0), (0.5, 40)):
        cut = {"kind": "mix", "policy": {"kind": "lead", "p": p}, "whole_share": 0.1}
        runs.append(make_run(f"mix 0.9 lead {p:g}", right, cut, num_problems=40))
    (found,) = break_points(build_frontiers(runs)[0], 0.95)
    assert found.measured is not None  # 40 of 40 keep 95 % for all that resamples show, and 91 % at least by Wilson
    assert (found.measured.low, found.measured.high) == (0.25, 1.0)


def test_an_end_of_zero_is_said_to_be_untried(make_run: MakeRun) -> None:
    found = only(mixes(make_run, {0.25: 268, 0.5: 299}))  # 0.89 at the smallest tested p
    assert found.measured is not None and found.measured.low == 0.0
    assert "(95 % interval: up to 0.5; nothing below 0.25 was tried)" in measured_text(found)
    assert found.measured is not None
    measured = found.measured.model_copy(update={"low": 0.125, "high": 0.375})
    assert "from 0.125 to 0.375)" in measured_text(found.model_copy(update={"measured": measured}))


def test_the_prediction_of_a_lead_stands_beside_the_measurement(make_run: MakeRun) -> None:
    values = {"num_steps": 1, "num_tokens": 1, "num_weighted_tokens": 1, "flops": {}, "memory": {}}
    runs = runs_of(make_run, {0.25: 90, 0.5: 240})
    for place, run in enumerate(runs):
        point = Interval(value=0.5 + place % 2 / 10, low=0.4, high=0.7)
        prediction = Prediction.model_validate({**values, "break_point": point})
        runs[place] = run.model_copy(update={"prediction": prediction})
    found = only(runs)
    assert found.predicted is not None and found.predicted.value == pytest.approx(0.55)  # of three and three runs
    assert [break_point_sentence(found)][0].endswith(
        "; derivations were predicted to be complete from 0.55 [0.40, 0.70] on."
    )
