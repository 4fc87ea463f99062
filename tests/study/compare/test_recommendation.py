from collections.abc import Callable

import pytest

from leadspan.errors import SettingsError
from leadspan.results import RunResult
from leadspan.study.compare.frontier import Frontier, build_frontiers
from leadspan.study.compare.recommendation import recommend

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}


def only(runs: list[RunResult]) -> Frontier:
    (frontier,) = build_frontiers(runs)
    return frontier


def lead(p: float) -> dict[str, object]:
    return {"kind": "lead", "p": p}


@pytest.fixture
def curve(make_run: MakeRun) -> list[RunResult]:
    """Three seeds of 400 problems: 0.9 and 0.7 keep all, 0.5 keeps a third; 0.7 takes less time but more memory."""
    runs: list[RunResult] = []
    for seed in range(3):
        runs += [
            make_run("full", 300, FULL, num_problems=400, seed=seed),
            make_run("lead 0.9", 300, lead(0.9), cost=0.9, num_problems=400, seed=seed),
            make_run("lead 0.7", 300, lead(0.7), cost=0.7, num_problems=400, seed=seed, ended=0.8),
            make_run("lead 0.5", 100, lead(0.5), cost=0.5, num_problems=400, seed=seed),
        ]
    for place, run in enumerate(runs):
        if run.label == "lead 0.7" and run.train is not None:
            changed = run.train.model_copy(update={"peak_memory_bytes": 190})
            runs[place] = run.model_copy(update={"train": changed})
    return runs


def test_the_cheapest_policy_that_surely_meets_the_target_is_recommended(curve: list[RunResult]) -> None:
    found = recommend(only(curve), 0.85)
    assert found.row is not None and found.row.label == "lead 0.7" and found.needed == ""
    assert found.sentence.startswith(
        "The cheapest policy by time shown to keep 85 % of full's accuracy is lead 0.7: it kept 100 ["
    )
    assert found.sentence.endswith(
        "(95 % interval; 400 problems x 1 sample x 3 seeds) and saved 30 % of the time (7 s instead of 10 s) and "
        "30 % of the tokens (700 instead of 1 k); it ended 80 % of its answers (full: 100 %)."
    )


def test_the_cost_decides_which_is_the_cheapest(curve: list[RunResult]) -> None:
    found = recommend(only(curve), 0.85, "peak_memory_bytes")
    assert found.row is not None and found.row.label == "lead 0.9"
    assert "shown to keep 85 % of full's accuracy is lead 0.9" in found.sentence
    assert "saved 10 % of the memory (180 B instead of 200 B)" in found.sentence


def test_a_lower_target_is_met_by_a_cheaper_policy(curve: list[RunResult]) -> None:
    found = recommend(only(curve), 0.2)
    assert found.row is not None and found.row.label == "lead 0.5"


def test_the_closest_is_named_when_none_meets_the_target(study: list[RunResult]) -> None:
    found = recommend(only(study))
    assert found.row is None and found.closest is not None and found.closest.label == "lead 0.5"
    assert found.sentence.startswith(
        "No policy is shown to keep 90 % of full's accuracy; lead 0.5 comes closest: it kept 50 ["
    )
    assert found.needed.startswith("At the 50 % seen no number of problems or seeds shows 90 %")


def test_what_a_showing_would_need_is_told_by_the_runs(make_run: MakeRun) -> None:
    runs = [make_run("full", 120 + seed % 2, FULL, num_problems=200, seed=seed) for seed in range(3)]
    runs += [make_run("lead 0.5", 116 - seed % 2, num_problems=200, seed=seed) for seed in range(3)]
    found = recommend(only(runs), 0.95)
    assert found.row is None
    assert found.needed.startswith("If what was seen is true,") and "`leadspan power`" in found.needed


def test_a_low_end_just_under_the_target_does_not_read_as_the_target(make_run: MakeRun) -> None:
    frontier = only([make_run("full", 300, FULL, num_problems=400), make_run("lead 0.5", 270, num_problems=400)])
    kept = frontier.rows[1].kept
    assert kept is not None and kept.ratio is not None
    found = recommend(frontier, kept.ratio.low + 0.001)
    assert found.row is None and f"[{100 * kept.ratio.low:.1f}, " in found.sentence


def test_a_refused_ratio_recommends_nothing_and_gives_the_difference(make_run: MakeRun) -> None:
    found = recommend(only([make_run("full", 0, FULL), make_run("lead 0.5", 4, cost=0.5)]))
    assert (found.row, found.closest) == (None, None)
    assert found.sentence.startswith(
        "No policy can be recommended: the full student's accuracy has a lower bound of 0.000"
    )
    assert "Difference in accuracy: lead 0.5 +10 [" in found.sentence


def test_controls_are_no_candidates_and_stand_beside(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400), make_run("lead 0.5", 290, num_problems=400, cost=0.5)]
    window = {"kind": "random_window", "p": 0.5}
    runs += [make_run("random_window 0.5", 299, window, num_problems=400, cost=0.4, control="random_window")]
    found = recommend(only(runs), 0.8)
    assert found.row is not None and found.row.label == "lead 0.5"
    (sentence,) = found.controls
    assert sentence.startswith("lead 0.5 is worse than random_window 0.5 (a random window of the same length): -2 [")


def test_a_cost_that_one_run_lacks_is_refused(study: list[RunResult]) -> None:
    with pytest.raises(SettingsError, match=r"cost money: not known of every run \(time, memory, FLOPs, tokens are\)"):
        recommend(only(study), cost="money")


def test_nothing_but_the_uncut_run_recommends_nothing(make_run: MakeRun) -> None:
    assert recommend(only([make_run("full", 30, FULL)])).sentence == "No policy can be recommended: no cut was trained."


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_no_share_is_refused(study: list[RunResult], target: float) -> None:
    with pytest.raises(SettingsError, match=r"target .*: give a share of the uncut run's accuracy above 0"):
        recommend(only(study), target)


def test_every_student_gets_its_own_answer(make_run: MakeRun) -> None:
    small, large = ({"student": {"path": path}} for path in ("small", "large"))
    runs = [
        make_run("full", 200, FULL, num_problems=400, cost=0.2, settings=small, name="full, small"),
        make_run("lead 0.5", 200, num_problems=400, cost=0.1, settings=small, name="lead 0.5, small"),
        make_run("full", 300, FULL, num_problems=400, settings=large, name="full, large"),
        make_run("lead 0.5", 250, num_problems=400, cost=0.5, settings=large, name="lead 0.5, large"),
        make_run("lead 0.7", 300, lead(0.7), num_problems=400, cost=0.7, settings=large, name="lead 0.7, large"),
    ]
    found = recommend(only(runs), 0.8)
    assert found.row is not None and found.row.label == "lead 0.7"
    assert "of full, large's accuracy is lead 0.7" in found.sentence
    (other,) = found.others
    assert other.row is not None and other.row.label == "lead 0.5, small"
    assert "of full, small's accuracy is lead 0.5, small" in other.sentence and other.sentence in found.text
