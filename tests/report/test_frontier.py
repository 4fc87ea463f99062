from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.errors import RunError, SettingsError
from leadspan.report.break_points import break_points
from leadspan.report.captions import captions
from leadspan.report.content import Report
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import find_conditions, read_inputs
from leadspan.report.recommendation import recommend
from leadspan.report.rows import Frontier, Row, by_cost, currencies_of
from leadspan.results import Prediction, RunResult, save_run
from leadspan.tables import listed
from made_runs import UNTAUGHT

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
LEAD = {"kind": "lead", "p": 0.5}
MIX = {"kind": "mix", "whole_share": 0.1}


def only(runs: list[RunResult]) -> Frontier:
    (frontier,) = build_frontiers(runs)
    return frontier


def row_of(runs: list[RunResult], label: str) -> Row:
    return {row.label: row for row in only(runs).rows}[label]


def test_one_row_for_each_run_and_task(make_run: MakeRun) -> None:
    runs = [
        make_run("full", 30, FULL, tasks=("sums", "products")),
        make_run("base", 6, role="base", tasks=("sums",)),
    ]
    found = [(frontier.task, [row.label for row in frontier.rows]) for frontier in build_frontiers(runs)]
    assert found == [("sums", ["full", "base"]), ("products", ["full"])]


def test_a_row_holds_what_was_measured(study: list[RunResult]) -> None:
    row = row_of(study, "lead 0.5")
    assert (row.role, row.cut_kind, row.num_problems, row.samples_per_problem) == ("student", "lead", 40, 1)
    assert (row.accuracy.value, row.termination.value) == (15 / 40, 0.53)
    assert (row.cap_hit_rate, row.tokens_p50) == (pytest.approx(0.47), 148)


def test_retention_is_a_share_of_the_uncut_run_with_an_interval(study: list[RunResult]) -> None:
    row = row_of(study, "lead 0.5")
    assert row.reference == "full" and row.retention is not None and row.retention.ratio and row.retention.difference
    assert row.retention.ratio.value == pytest.approx(0.5)  # 15 right of the 30
    assert row.retention.difference.value == pytest.approx(-15 / 40)
    assert 0.25 < row.retention.ratio.low < 0.5 < row.retention.ratio.high < 0.75


def test_costs_are_absolute_and_relative_to_the_uncut_run(study: list[RunResult]) -> None:
    costs = row_of(study, "lead 0.5").costs
    assert costs is not None
    assert {name: (cost.value, cost.of_full) for name, cost in costs.items()} == {
        "seconds": (5.0, 0.5),
        "peak_memory_bytes": (100, 0.5),
        "flops": (200, 0.5),
        "tokens": (500, 0.5),
    }


def test_base_and_teacher_have_no_costs_and_only_the_base_a_retention(study: list[RunResult]) -> None:
    teacher, base = row_of(study, "teacher"), row_of(study, "base")
    assert (teacher.costs, teacher.retention, teacher.cut_kind) == (None, None, None)
    assert base.costs is None and base.retention is not None and base.retention.ratio is not None
    assert base.retention.ratio.value == pytest.approx(6 / 30)


def test_the_reference_is_found_by_its_cut_not_by_its_name(make_run: MakeRun) -> None:
    runs = [make_run("full", 10, LEAD, name="full"), make_run("all of it", 20, FULL, name="lead")]
    assert row_of(runs, "full").reference == "all of it"
    assert row_of(runs, "all of it").reference is None


def test_a_teacher_without_a_cut_is_no_reference(make_run: MakeRun) -> None:
    teacher = make_run("teacher", 40, FULL, role="teacher")
    assert row_of([teacher, make_run("lead 0.5", 10)], "lead 0.5").reference is None


def test_without_an_uncut_run_nothing_is_relative_and_it_is_said(make_run: MakeRun) -> None:
    runs = [make_run("lead 0.5", 15, cost=0.5)]
    row = row_of(runs, "lead 0.5")
    assert row.retention is None and row.costs is not None
    assert [cost.of_full for cost in row.costs.values()] == [None] * 4
    assert "No student was trained on uncut traces" in only(runs).notes[0]


def test_retention_is_refused_where_the_uncut_run_is_near_zero(make_run: MakeRun) -> None:
    runs = [make_run("full", 0, FULL), make_run("lead 0.5", 4)]
    kept = row_of(runs, "lead 0.5").retention
    assert kept is not None and kept.ratio is None and kept.difference is not None
    assert kept.difference.value == pytest.approx(4 / 40)
    assert kept.reason is not None and "lower bound" in kept.reason


def test_other_problems_are_not_compared_and_do_not_stop_the_rest(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL), make_run("lead 0.5", 15, num_problems=20), make_run("lead 0.6", 15)]
    kept = row_of(runs, "lead 0.5").retention
    assert kept is not None and (kept.ratio, kept.difference) == (None, None)
    assert kept.reason is not None and "different problems" in kept.reason
    other = row_of(runs, "lead 0.6").retention
    assert other is not None and other.ratio is not None


def test_seeds_of_one_recipe_are_one_row_with_a_row_for_each_run(make_run: MakeRun) -> None:
    runs = [make_run("full", right, FULL, seed=seed) for seed, right in enumerate((30, 28, 32))]
    runs += [make_run("lead 0.5", right, seed=seed, cost=cost) for seed, right, cost in ((1, 14, 0.6), (0, 16, 0.4))]
    row = row_of(runs, "lead 0.5")
    assert [run.seed for run in row.runs] == row.seeds == [0, 1]
    assert row.accuracy.value == pytest.approx(15 / 40) and "Student's t" in row.accuracy.method
    assert [(one.label, one.accuracy.value) for one in row.single_runs] == [
        ("lead 0.5 (seed 0)", 16 / 40),
        ("lead 0.5 (seed 1)", 14 / 40),
    ]
    assert [one.retention.ratio.value for one in row.single_runs if one.retention and one.retention.ratio] == [
        16 / 30,
        14 / 28,
    ]
    costs = row.costs
    assert costs is not None and (costs["seconds"].value, costs["seconds"].values) == (5.0, (4.0, 6.0))
    assert costs["seconds"].sd == pytest.approx(2**0.5) and costs["seconds"].of_full == 0.5


def test_retention_is_over_the_seeds_that_both_have(make_run: MakeRun) -> None:
    runs = [make_run("full", right, FULL, seed=seed) for seed, right in enumerate((10, 30, 30))]
    runs += [make_run("lead 0.5", 15, seed=1), make_run("lead 0.5", 15, seed=2)]
    kept = row_of(runs, "lead 0.5").retention
    assert kept is not None and kept.ratio is not None and kept.seeds == (1, 2)
    assert kept.ratio.value == pytest.approx(15 / 30)  # not of the mean of all three
    assert only(runs).notes == ("lead 0.5: compared with full over the shared seeds (1, 2).",)


def test_costs_are_a_share_over_the_seeds_that_retention_compares(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, seed=seed, cost=cost) for seed, cost in enumerate((2.8, 1.0, 1.0))]
    runs += [make_run("lead 0.5", 15, seed=seed, cost=cost) for seed, cost in ((1, 1.0), (2, 1.1), (7, 9.0))]
    row = row_of(runs, "lead 0.5")
    assert row.costs is not None and row.retention is not None and row.retention.seeds == (1, 2)
    assert row.costs["seconds"].values == (10.0, 11.0, 90.0)
    assert row.costs["seconds"].of_full == pytest.approx(1.05)
    shares = [one.costs["seconds"].of_full for one in row.single_runs if one.costs]
    assert shares[:2] == pytest.approx([1.0, 1.1])


def test_rows_compared_over_the_same_seeds_share_a_note_and_equal_seeds_need_none(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in range(3)]
    runs += [make_run("base", 6, role="base")]
    runs += [make_run("lead 0.5", 15, seed=seed) for seed in range(3)]
    runs += [make_run(label, 15, {"kind": "lead", "p": float(label[5:])}, seed=2) for label in ("lead 0.6", "lead 0.7")]
    assert only(runs).notes == (
        "base: compared with full over the shared seeds (0).",
        "lead 0.6, lead 0.7: compared with full over the shared seeds (2).",
    )


def test_seeds_without_an_uncut_run_are_left_out_of_the_comparison_and_it_is_said(make_run: MakeRun) -> None:
    runs = [make_run("full", 40, FULL), *(make_run("lead 0.5", right, seed=s) for s, right in enumerate((10, 30)))]
    kept = row_of(runs, "lead 0.5").retention
    assert kept is not None and kept.ratio is not None and kept.ratio.value == pytest.approx(10 / 40)
    assert only(runs).notes == ("lead 0.5: compared with full over the shared seeds (0).",)


def test_without_a_shared_seed_all_runs_are_compared(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, seed=0), make_run("full", 30, FULL, seed=1), make_run("lead 0.5", 15, seed=7)]
    kept = row_of(runs, "lead 0.5").retention
    assert kept is not None and kept.ratio is not None and kept.ratio.value == pytest.approx(15 / 30)
    assert only(runs).notes == (
        "lead 0.5: no seed is shared with full, so its seeds (7) are compared with those of full (0, 1).",
    )


def test_seeds_widen_the_interval_of_retention(make_run: MakeRun) -> None:
    def width(rights: list[int]) -> float:
        runs = [make_run("full", 300, FULL, seed=seed, num_problems=400) for seed in range(3)]
        runs += [make_run("lead 0.5", right, seed=seed, num_problems=400) for seed, right in enumerate(rights)]
        kept = row_of(runs, "lead 0.5").retention
        assert kept is not None and kept.ratio is not None
        return kept.ratio.high - kept.ratio.low

    assert width([150, 200, 250]) > 3 * width([200, 200, 200])


def test_a_seed_on_other_problems_is_left_out_and_said(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL), make_run("full", 10, FULL, seed=1, num_problems=20)]
    frontier = only(runs)
    assert frontier.rows[0].seeds == [0]
    assert frontier.notes[0] == "full (seed 1) was evaluated on other problems than its other seeds, and is left out."


def test_seeds_that_were_evaluated_on_different_tasks_are_reported(
    make_run: MakeRun, report_of: Callable[..., Report]
) -> None:
    runs = [make_run("full", 30, FULL), make_run("full", 20, FULL, seed=1, tasks=("other",)), make_run("lead 0.5", 15)]
    toy, other = report_of(runs).tasks
    assert [(row.label, row.seeds) for row in toy.rows] == [("full", [0]), ("lead 0.5", [0])]
    assert [(row.label, row.seeds, row.accuracy.value) for row in other.rows] == [("full", [1], 0.5)]


def test_answers_sampled_with_different_settings_are_not_compared(make_run: MakeRun) -> None:
    def sampled(label: str, cut: dict[str, Any], answering: str = "by itself", **settings: Any) -> RunResult:
        run = make_run(label, 20, cut)
        sampling = {"temperature": 0.6, "max_new_tokens": 300, "thinking_budget": None, "batch_size": 8, **settings}
        changes = {"sampling": sampling, "answering": answering}
        return run.model_copy(update={"evaluations": [each.model_copy(update=changes) for each in run.evaluations]})

    # what is written by itself does not depend on the budget after which another sample is made to answer
    full, alike = sampled("full", FULL), sampled("lead 0.5", LEAD, batch_size=4, thinking_budget=200)
    assert not [note for note in build_frontiers([full, alike])[0].notes if "sampled" in note]
    longer = sampled("lead 0.6", {"kind": "lead", "p": 0.6}, max_new_tokens=900)
    shown = "different settings (max_new_tokens 300 or 900)"
    frontier = only([full, alike, longer])
    assert f"Answers were sampled with {shown} and cannot be compared." in frontier.notes
    kept = {row.label: row.retention for row in frontier.rows}
    assert kept["lead 0.5"] and kept["lead 0.5"].ratio and kept["lead 0.6"] and kept["lead 0.6"].difference is None
    refusal = f"Retention of lead 0.6 was refused: answers were sampled with {shown}; evaluate both alike."
    assert refusal in captions(frontier)
    (point,) = break_points(frontier)
    assert point.measured is None and shown in (point.reason or "")
    forced = [sampled("full", FULL, "made to answer", thinking_budget=100), sampled("lead", LEAD, "made to answer")]
    assert "thinking_budget 100 or none" in only(forced).notes[0]


def test_a_share_over_one_shared_seed_is_not_said_to_cover_the_seeds(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)]
    runs += [make_run("lead 0.5", 15, seed=seed) for seed in (1, 2)]
    covered = "which cover the variation between seeds (the shares of lead 0.5 do not: one seed is shared): bootstrap"
    assert covered in captions(only(runs))[0]


def test_labels_with_commas_are_listed_with_semicolons() -> None:
    assert listed(["full", "lead 0.5"]) == "full, lead 0.5"
    assert listed(["full, LoRA", "full, teacher"]) == "full, LoRA; full, teacher"


def test_prices_in_two_currencies_are_not_compared(make_run: MakeRun) -> None:
    runs: list[RunResult] = []
    for label, cut, currency in (("full", FULL, "EUR"), ("lead 0.5", LEAD, "USD")):
        run = make_run(label, 30, cut, settings={"plan": {"price_per_hour": 3.6, "currency": currency}})
        assert run.train is not None
        runs.append(run.model_copy(update={"train": run.train.model_copy(update={"num_ranks": 1})}))
    frontier = only(runs)
    assert "Prices are in different currencies (EUR, USD) and are not compared." in frontier.notes
    costs = row_of(runs, "lead 0.5").costs
    assert costs is not None and costs["money"].of_full is None and costs["flops"].of_full == 1
    with pytest.raises(SettingsError, match="in one currency"):
        recommend(frontier, cost="money")


def test_costs_are_beside_their_predictions_and_energy_and_money_where_known(make_run: MakeRun) -> None:
    prediction = Prediction(
        num_steps=5,
        num_tokens=450,
        num_weighted_tokens=400,
        flops=FlopsByPart(student_body=220),
        memory=MemoryByPart(weights=90),
        seconds=6.0,
        money=0.01,
    )
    priced = {"plan": {"price_per_hour": 3.6, "currency": "EUR"}}
    runs = [make_run("full", 30, FULL, settings=priced)]
    runs += [make_run("lead 0.5", 15, cost=0.5, settings=priced, prediction=prediction)]
    for place, run in enumerate(runs):
        assert run.train is not None
        runs[place] = run.model_copy(
            update={"train": run.train.model_copy(update={"num_ranks": 2, "energy_joules": 7200.0 / (place + 1)})}
        )
    frontier = only(runs)
    assert currencies_of(run for row in frontier.rows for run in row.runs) == ["EUR"]
    assert frontier.cost_names == ("seconds", "peak_memory_bytes", "flops", "tokens", "energy_joules", "money")
    costs = row_of(runs, "lead 0.5").costs
    assert costs is not None
    assert {name: (cost.value, cost.of_full, cost.predicted) for name, cost in costs.items()} == {
        "seconds": (5.0, 0.5, 6.0),
        "peak_memory_bytes": (100, 0.5, 90),
        "flops": (200, 0.5, 220),
        "tokens": (500, 0.5, 450),
        "energy_joules": (3600.0, 0.5, None),
        "money": (pytest.approx(3.6 * 2 * 5 / 3600), 0.5, 0.01),
    }
    assert costs["seconds"].error == pytest.approx(0.2)


def test_a_policy_stands_beside_its_controls(make_run: MakeRun) -> None:
    window = {"kind": "random_window", "p": 0.5}
    taught: dict[str, object] = {}
    runs = [make_run("full", 300, FULL, num_problems=400, settings=taught)]
    runs += [make_run("lead 0.5", 250, num_problems=400, settings=taught)]
    runs += [make_run("random_window 0.5", 150, window, num_problems=400, settings=taught, control="random_window")]
    alone = UNTAUGHT
    name = "lead 0.5, cross-entropy"
    runs += [make_run("lead 0.5", 251, num_problems=400, settings=alone, name=name, control="cross_entropy")]
    longer = {**taught, "training": {"learning_rate": 1e-3, "steps": 99}}
    name = "lead 0.5, equal tokens"
    runs += [make_run("lead 0.5", 280, num_problems=400, settings=longer, name=name, control="equal_tokens")]
    beside = {one.control: one for one in row_of(runs, "lead 0.5").against_controls}
    assert {name: one.label for name, one in beside.items()} == {
        "equal_tokens": "lead 0.5, equal tokens",
        "random_window": "random_window 0.5",
        "cross_entropy": "lead 0.5, cross-entropy",
    }
    outcomes = {name: one.outcome for name, one in beside.items()}
    assert outcomes == {"equal_tokens": "worse", "random_window": "better", "cross_entropy": "unclear"}
    assert all(one.p_value is not None and 0 < one.p_value <= 1 for one in beside.values())
    difference = beside["random_window"].difference
    assert difference is not None and difference.value == pytest.approx(100 / 400)
    assert row_of(runs, "full").against_controls == row_of(runs, "random_window 0.5").against_controls == []


@pytest.mark.parametrize(
    ("runs", "policies", "labels"),
    [
        pytest.param([("a", 0, "x"), ("b", 0, "y")], ["a", "b"], ["a", "b"], id="distinct"),
        pytest.param([("a", 0, "x"), ("a", 1, "y")], ["a", "a"], ["a (seed 0)", "a (seed 1)"], id="seeds"),
        pytest.param([("a", 0, "x"), ("a", 0, "y")], ["a (x)", "a (y)"], ["a (x)", "a (y)"], id="conditions"),
    ],
)
def test_labels_are_made_unique(
    make_run: MakeRun, runs: list[tuple[str, int, str]], policies: list[str], labels: list[str]
) -> None:
    made = [make_run(label, 10, seed=seed, name=name) for label, seed, name in runs]
    conditions = find_conditions(made)
    assert [condition.name for condition in conditions for _ in condition.runs] == policies
    assert [label for condition in conditions for label in condition.labels()] == labels


def test_what_differs_besides_the_cut_is_noted(make_run: MakeRun) -> None:
    adapters = {"training": {"learning_rate": 1e-2, "lora": {"r": 8}, "log_every": 1}}
    full, tail = make_run("full", 30, FULL), make_run("tail 0.5", 20, {"kind": "tail", "p": 0.5})
    notes = only([full, tail, make_run("lead 0.5", 15, settings=adapters)]).notes
    assert notes == (
        "lead 0.5: besides the cut, these settings differ from those of full: training.learning_rate, training.lora.",
    )
    assert only([full, make_run("lead 0.5", 15, name="lead 0.5, LoRA", settings=adapters)]).notes == ()  # of a study


def test_measurements_that_cannot_be_compared_are_noted(make_run: MakeRun) -> None:
    lead = make_run("lead 0.5", 15, device="a GPU, 1 rank")
    assert lead.train is not None
    lead = lead.model_copy(update={"train": lead.train.model_copy(update={"memory_source": "cuda allocator"})})
    notes = only([make_run("full", 30, FULL), lead]).notes
    assert "times come from different devices (cpu, 1 rank; a GPU, 1 rank)" in notes[0]
    assert "Peak memory was measured in different ways (process resident set; cuda allocator)" in notes[1]


def test_by_cost_puts_the_cheapest_first_and_rows_without_costs_last(study: list[RunResult]) -> None:
    rows = by_cost(list(only(study).rows), "seconds")
    assert [row.label for row in rows] == ["lead 0.5", "full", "teacher", "base"]


def test_runs_without_an_evaluation_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(RunError, match="no run has an evaluation; evaluate one"):
        build_frontiers([make_run("full", 30, FULL, tasks=())])


def test_runs_are_read_from_directories_and_from_their_parents(study: list[RunResult], tmp_path: Path) -> None:
    for position, run in enumerate(study):
        save_run(run, tmp_path / "study" / f"{position}")
    assert list(read_inputs([tmp_path / "study"]).runs) == study
    paths = [tmp_path / "study" / "3", tmp_path / "study" / "0"]
    assert list(read_inputs(paths).runs) == [study[3], study[0]]


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json in it or one level below"):
        read_inputs([tmp_path])


@pytest.mark.parametrize(
    ("slow", "is_fair"),
    [pytest.param(1.4, True, id="short sequences fill a device less"), pytest.param(1.6, False, id="other load")],
)
def test_times_are_compared_where_like_runs_have_like_rates(make_run: MakeRun, slow: float, is_fair: bool) -> None:
    lead = make_run("lead 0.5", 15, cost=0.5)
    assert lead.train is not None
    train = lead.train.model_copy(update={"seconds": slow * lead.train.seconds})
    frontier = only([make_run("full", 30, FULL), lead.model_copy(update={"train": train})])
    assert (frontier.clock is None) == is_fair
    drawn = {"rollout": {"horizon": {"kind": "fixed", "tokens": 16}}, "loss": {"kl_weight": 1}}
    rollouts = make_run("full", 30, FULL, name="full, drawn", settings=drawn).model_copy(update={"train": train})
    assert only([make_run("full", 30, FULL), rollouts]).clock is None  # it is slow by nature
    typical = train.model_copy(update={"typical_seconds": lead.train.seconds})  # a burst of load, and half of the steps
    assert only([make_run("full", 30, FULL), lead.model_copy(update={"train": typical})]).clock is None
