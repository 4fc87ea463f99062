import re
from collections.abc import Callable

import numpy as np
import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.errors import SettingsError
from leadspan.report.frontier import build_frontiers
from leadspan.report.recommendation import Answer, recommend
from leadspan.report.rows import Frontier
from leadspan.results import RunResult
from leadspan.tables import CostName
from made_runs import pretrained

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}


def only(runs: list[RunResult]) -> Frontier:
    (frontier,) = build_frontiers(runs)
    return frontier


def answer(frontier: Frontier, target: float = 0.9, cost: CostName = "seconds") -> Answer:
    """The first answer."""
    return recommend(frontier, target, cost)[0]


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
    found = answer(only(curve), 0.85)
    assert found.recommended == "lead 0.7" and found.needed == ""
    assert found.sentence.startswith(
        "The cheapest policy by time shown to keep 85 % of full's accuracy is lead 0.7: it kept 100 ["
    )
    assert found.sentence.endswith(
        "(95 % interval for all 3 policies together, [99, 101] for this one alone; 400 problems x 1 sample x 3 seeds) "
        "and saved 30 % of the time (7 s instead of 10 s) and 30 % of the tokens (700 instead of 1 k); it ended 80 % "
        "of its answers (full: 100 %)."
    )


@pytest.mark.slow
def test_the_best_of_six_by_chance_is_not_shown(make_run: MakeRun) -> None:
    """Its own interval lies above the target; that for six policies together does not."""
    rights = dict(zip((0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (280, 276, 272, 270, 275, 278), strict=True))
    runs = [make_run("full", 300, FULL, num_problems=400)]
    runs += [make_run(f"lead {p}", right, lead(p), cost=p, num_problems=400) for p, right in rights.items()]
    kept = only(runs).rows[1].retention
    assert kept is not None and kept.ratio is not None and kept.simultaneous is not None
    assert kept.simultaneous.num_policies == 6 and kept.simultaneous.low < kept.ratio.low
    target = (kept.simultaneous.low + kept.ratio.low) / 2
    found = answer(only(runs), target)
    assert found.recommended is None and found.closest == "lead 0.4"
    assert f"for all 6 policies together, [{100 * kept.ratio.low:.0f}, {100 * kept.ratio.high:.0f}]" in found.sentence
    assert "`leadspan power --level 0.99" in found.needed
    assert found.selection.startswith("lead 0.4 was chosen among 6 policies")
    alone = answer(only(runs[:2]), target)
    assert alone.recommended == "lead 0.4" and alone.selection == ""


def test_a_saving_that_rounds_to_nothing_says_which_cost_is_saved(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400), make_run("lead 0.8", 300, lead(0.8), num_problems=400)]
    assert runs[1].train is not None
    update = {"seconds": 9.98, "flops": FlopsByPart(student_body=240, teacher_body=80)}
    runs[1] = runs[1].model_copy(update={"train": runs[1].train.model_copy(update=update)})
    found = answer(only(runs), 0.5)
    assert found.recommended is None
    assert " and saved 20 % of the FLOPs (320 FLOP instead of 400 FLOP) and took the same time (9.98 s and 10 s)" in (
        found.sentence
    )


def test_the_cost_decides_which_is_the_cheapest(curve: list[RunResult]) -> None:
    found = answer(only(curve), 0.85, "peak_memory_bytes")
    assert found.recommended == "lead 0.9"
    assert "shown to keep 85 % of full's accuracy is lead 0.9" in found.sentence
    assert "saved 10 % of the memory (180 B instead of 200 B)" in found.sentence


def test_a_lower_target_is_met_by_a_cheaper_policy(curve: list[RunResult]) -> None:
    found = answer(only(curve), 0.2)
    assert found.recommended == "lead 0.5"


def test_the_closest_is_named_when_none_meets_the_target(study: list[RunResult]) -> None:
    found = answer(only(study))
    assert found.recommended is None and found.closest == "lead 0.5"
    assert found.sentence.startswith(
        "No policy is shown to keep 90 % of full's accuracy; lead 0.5 comes closest: it kept 50 ["
    )
    assert found.needed.startswith("At the 50 % measured, no number of problems or seeds will show 90 %")


def test_what_a_showing_would_need_is_told_by_the_runs(make_run: MakeRun) -> None:
    runs = [make_run("full", 120 + seed % 2, FULL, num_problems=200, seed=seed) for seed in range(3)]
    runs += [make_run("lead 0.5", 116 - seed % 2, num_problems=200, seed=seed) for seed in range(3)]
    found = answer(only(runs), 0.95)
    assert found.recommended is None
    assert found.needed.startswith("If what was measured is true,") and "`leadspan power`" in found.needed


def test_a_low_end_just_under_the_target_does_not_read_as_the_target(make_run: MakeRun) -> None:
    """The lower end is 93.9953 %, which one decimal or two would round to the target."""
    frontier = only([make_run("full", 300, FULL, num_problems=400), make_run("lead 0.5", 289, num_problems=400)])
    for target, shown in ((0.95, "[94, "), (0.94, "[93.995, "), (0.93996, "[93.995, ")):
        found = answer(frontier, target)
        assert found.needed and shown in found.sentence


def test_a_target_is_stated_with_all_its_digits(make_run: MakeRun) -> None:
    """The lower end is 98.1 %: of two targets that round to 98 % it reaches one."""
    frontier = only(
        [make_run("full", 300, FULL, num_problems=400), make_run("lead 0.5", 299, cost=0.5, num_problems=400)]
    )
    assert answer(frontier, 0.975).sentence.startswith("The cheapest policy by time shown to keep 97.5 % of full's")
    assert answer(frontier, 0.985).sentence.startswith("No policy is shown to keep 98.5 % of full's accuracy; lead 0.5")
    assert "no number of problems or seeds will show 99.75 %" in answer(frontier, 0.9975).needed


def sized(runs: list[RunResult], memory: dict[str, list[int]]) -> list[RunResult]:
    """The runs, in the order of their seeds, with the peaks of memory given by label."""
    peaks = {label: iter(values) for label, values in memory.items()}
    changed: list[RunResult] = []
    for run in runs:
        assert run.train is not None
        train = run.train.model_copy(update={"peak_memory_bytes": next(peaks[run.label])})
        changed.append(run.model_copy(update={"train": train}))
    return changed


def two(make_run: MakeRun, cost: float = 0.5, seeds: int = 1) -> list[RunResult]:
    return [
        make_run(label, 300, cut, cost=of_full, num_problems=400, seed=seed)
        for label, cut, of_full in (("full", FULL, 1.0), ("lead 0.5", lead(0.5), cost))
        for seed in range(seeds)
    ]


def by_memory(runs: list[RunResult], target: float = 0.8) -> Answer:
    return answer(only(runs), target, "peak_memory_bytes")


def test_a_policy_that_costs_more_than_the_uncut_run_is_not_recommended(make_run: MakeRun) -> None:
    runs = sized(two(make_run), {"full": [600], "lead 0.5": [800]})
    found = by_memory(runs)
    assert (found.recommended, found.closest, found.needed) == (None, "lead 0.5", "")
    assert "full is the cheapest by memory" in found.sentence
    assert "saved 50 % of the tokens (500 instead of 1 k) and 50 % of the FLOPs" in found.sentence
    assert "added 33 % of the memory (800 B instead of 600 B)" in found.sentence
    assert answer(only(runs), 0.8, "tokens").recommended == "lead 0.5"


def test_one_that_costs_less_is_taken_before_a_better_one_that_costs_more(make_run: MakeRun) -> None:
    runs = [*two(make_run), make_run("lead 0.7", 290, lead(0.7), num_problems=400)]
    assert by_memory(sized(runs, {"full": [600], "lead 0.5": [800], "lead 0.7": [500]})).recommended == "lead 0.7"


def test_the_amounts_of_a_saving_are_those_of_the_seeds_that_it_compares(make_run: MakeRun) -> None:
    runs = two(make_run, seeds=3)
    del runs[1:3]  # of the uncut run, which has the first seed alone
    assert "saved 50 % of the memory (500 B instead of 1,000 B)" in by_memory(sized(runs, {
        "full": [1000], "lead 0.5": [500, 1900, 1950],
    })).sentence  # fmt: skip


def test_a_saving_goes_with_the_spread_over_seeds(make_run: MakeRun) -> None:
    runs = sized(two(make_run, seeds=3), {"full": [990, 1000, 1010], "lead 0.5": [500, 520, 540]})
    assert (
        "saved 48 % of the memory (520 B ± 20 B instead of 1,000 B ± 10 B, sd over seeds)" in by_memory(runs).sentence
    )


def test_a_saving_no_larger_than_its_spread_recommends_nothing(make_run: MakeRun) -> None:
    runs = sized(two(make_run, seeds=3), {"full": [400, 700, 910], "lead 0.5": [257, 511, 940]})
    found = by_memory(runs, 0.5)
    assert (found.recommended, found.closest) == (None, "lead 0.5")
    assert "whether it saves memory is unclear (" in found.sentence and "of the memory" not in found.sentence
    assert "cheapest" not in found.sentence and "saved 50 % of the tokens (500 instead of 1 k)" in found.sentence
    assert len(found.against_controls) == 1  # that none was run


def test_a_policy_that_costs_the_same_is_not_recommended(make_run: MakeRun) -> None:
    found = by_memory(sized(two(make_run, cost=1.0), {"full": [600], "lead 0.5": [599]}), 0.5)
    assert found.recommended is None and "the same memory (599 B and 600 B)" in found.sentence


def test_times_that_cannot_be_compared_leave_the_ranking_to_flops(make_run: MakeRun) -> None:
    runs = two(make_run)
    assert runs[1].train is not None
    slow = runs[1].train.model_copy(update={"seconds": 80.0})
    runs[1] = runs[1].model_copy(update={"train": slow})
    found = answer(only(runs), 0.8)
    assert found.recommended == "lead 0.5" and "by FLOPs" in found.sentence and "80 s" not in found.sentence
    assert any("FLOP/s" in note for note in only(runs).notes)


def test_the_closest_is_that_which_keeps_the_most_and_not_the_one_with_the_narrowest_interval(
    make_run: MakeRun,
) -> None:
    runs = [make_run("full", 300, FULL, seed=seed, num_problems=400) for seed in range(3)]
    runs += [make_run("lead 0.5", 200, seed=seed, num_problems=400) for seed in range(3)]
    runs += [
        make_run("lead 0.7", right, lead(0.7), seed=seed, num_problems=400, cost=0.7)
        for seed, right in enumerate((120, 210, 300))
    ]
    frontier = only(runs)
    lows = {row.label: row.retention.ratio.low for row in frontier.students if row.retention and row.retention.ratio}
    assert lows["lead 0.5"] > lows["lead 0.7"]
    found = answer(frontier, 0.95)
    assert found.closest == "lead 0.7"


def test_of_two_that_keep_as_much_the_cheaper_is_the_closest(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400)]
    runs += [make_run(f"lead {p}", 200, lead(p), cost=p, num_problems=400) for p in (0.7, 0.5)]
    found = answer(only(runs))
    assert found.closest == "lead 0.5"


def test_a_random_window_among_the_axes_is_no_candidate(make_run: MakeRun) -> None:
    window = {"kind": "random_window", "p": 0.5}
    runs = [make_run("full", 300, FULL, num_problems=400)]
    runs += [
        make_run("random_window 0.5", 300, window, cost=0.4, num_problems=400),
        make_run("mix 0.9 random_window 0.5", 300, {"kind": "mix", "policy": window}, cost=0.4, num_problems=400),
    ]
    assert answer(only(runs)).sentence == "No policy can be recommended: the only cuts are controls."
    found = answer(only([*runs, make_run("lead 0.5", 300, num_problems=400, cost=0.5)]), 0.8)
    assert found.recommended == "lead 0.5"
    assert "(95 % interval; 400 problems" in found.sentence  # a single candidate


def by_chance(make_run: MakeRun, samples: int, num_problems: int) -> Frontier:
    """One seed of two policies that are equally good, each with answers of its own."""
    generator = np.random.default_rng(0)
    chances = generator.random(num_problems)
    runs: list[RunResult] = []
    for label, cut in (("full", FULL), ("lead 0.5", lead(0.5))):
        run = make_run(label, 0, cut, num_problems=num_problems)
        scores = {
            f"p{i}": (generator.random(samples) < chance).astype(int).tolist() for i, chance in enumerate(chances)
        }
        found = run.evaluations[0].model_copy(update={"correct": scores, "samples_per_problem": samples})
        accuracy = found.accuracy_strict.model_copy(update={"value": float(np.mean(list(scores.values())))})
        changed = found.model_copy(update={"accuracy_strict": accuracy})
        runs.append(run.model_copy(update={"evaluations": [changed]}))
    return only(runs)


@pytest.mark.parametrize(
    ("samples", "num_problems", "assumed"),
    [
        (
            1,
            400,
            "60 % of the variance of answers lies between problems, the two students' chances have a correlation of "
            "0.9 over problems and accuracy has a standard deviation of 1 percentage point between seeds (assumed, as "
            "these runs do not show it), ",
        ),
        (
            4,
            200,
            "accuracy has a standard deviation of 1 percentage point between seeds (assumed, as one seed does not show "
            "it), ",
        ),
    ],
)
def test_what_the_runs_cannot_tell_is_said_to_be_assumed(
    make_run: MakeRun, samples: int, num_problems: int, assumed: str
) -> None:
    frontier = by_chance(make_run, samples, num_problems)
    kept = frontier.rows[1].retention
    assert kept is not None and kept.ratio is not None
    target = (kept.ratio.value + kept.ratio.low) / 2
    needed = answer(frontier, target).needed
    assert needed.startswith(f"If what was measured is true, and if {assumed}")
    (seeds,) = re.findall(r" and (\d+) seeds would show it", needed)
    assert int(seeds) >= 2


def test_a_refused_ratio_recommends_nothing_and_gives_the_difference(make_run: MakeRun) -> None:
    found = answer(only([make_run("full", 0, FULL), make_run("lead 0.5", 4, cost=0.5)]))
    assert (found.recommended, found.closest) == (None, None)
    assert found.sentence.startswith(
        "No policy can be recommended: the full student's accuracy has a lower bound of 0.000"
    )
    assert "Difference in accuracy: lead 0.5 +10 [" in found.sentence


def test_policies_whose_ratio_was_refused_are_not_passed_over(make_run: MakeRun) -> None:
    # With two seeds, whose spread says little, full's lower bound is near zero; with three it is not.
    runs = [make_run("full", right, FULL, num_problems=40, seed=seed) for seed, right in enumerate((20, 24, 22))]
    runs += [make_run("lead 0.5", 0, cost=0.5, num_problems=40, seed=seed) for seed in range(3)]
    runs += [make_run("lead 0.7", 26, lead(0.7), cost=0.7, num_problems=40, seed=seed) for seed in range(2)]
    found = answer(only(runs))
    assert (
        found.closest == "lead 0.5"
        and "lead 0.5 comes closest of those with a retention: it kept 0 [" in found.sentence
    )
    assert "No retention could be computed for others. Difference in accuracy: lead 0.7 +10 [" in found.sentence


def test_controls_are_no_candidates_and_stand_beside(make_run: MakeRun) -> None:
    runs = [make_run("full", 300, FULL, num_problems=400), make_run("lead 0.5", 290, num_problems=400, cost=0.5)]
    window = {"kind": "random_window", "p": 0.5}
    runs += [make_run("random_window 0.5", 299, window, num_problems=400, cost=0.4, control="random_window")]
    found = answer(only(runs), 0.8)
    assert found.recommended == "lead 0.5"
    (sentence,) = found.against_controls
    assert sentence.startswith("lead 0.5 is worse than random_window 0.5 (a random window of the same length): -2 [")


def test_a_cost_that_one_run_lacks_is_refused(study: list[RunResult]) -> None:
    with pytest.raises(SettingsError, match=r"cost money: not known for every run \(time, memory, FLOPs, tokens are\)"):
        answer(only(study), cost="money")


def test_nothing_but_the_uncut_run_recommends_nothing(make_run: MakeRun) -> None:
    assert answer(only([make_run("full", 30, FULL)])).sentence == "No policy can be recommended: no cut was trained."


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_no_share_is_refused(study: list[RunResult], target: float) -> None:
    with pytest.raises(SettingsError, match=r"target .*: give a share of the uncut run's accuracy above 0"):
        answer(only(study), target)


def test_every_student_gets_its_own_answer(make_run: MakeRun) -> None:
    small, large = ({"student": pretrained(path)} for path in ("small", "large"))
    runs = [
        make_run("full", 200, FULL, num_problems=400, cost=0.2, settings=small, name="full, small"),
        make_run("lead 0.5", 200, num_problems=400, cost=0.1, settings=small, name="lead 0.5, small"),
        make_run("full", 300, FULL, num_problems=400, settings=large, name="full, large"),
        make_run("lead 0.5", 250, num_problems=400, cost=0.5, settings=large, name="lead 0.5, large"),
        make_run("lead 0.7", 300, lead(0.7), num_problems=400, cost=0.7, settings=large, name="lead 0.7, large"),
    ]
    answers = recommend(only(runs), 0.8)
    assert [found.recommended for found in answers] == ["lead 0.7, large", "lead 0.5, small"]
