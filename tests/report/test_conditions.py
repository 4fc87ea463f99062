from collections.abc import Callable
from typing import Any

import pytest

from leadspan.report.inputs import base_of, counterparts, find_conditions, find_references
from leadspan.results import RunResult
from made_runs import UNTAUGHT, pretrained

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
TAUGHT: dict[str, Any] = {}


def references(runs: list[RunResult]) -> dict[str, str | None]:
    found = find_references(find_conditions(runs))
    return {name: reference.name if reference else None for name, reference in found.items()}


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_each_other(make_run: MakeRun) -> None:
    runs = [
        make_run("lead 0.5", 10, seed=0, name="a"),
        make_run("lead 0.5", 10, seed=1, name="b"),
        make_run("lead 0.5", 10, seed=2, name="lead 0.5, slow", settings={"training": {"learning_rate": 1e-4}}),
    ]
    found = [(one.name, [run.seed for run in one.runs]) for one in find_conditions(runs)]
    assert found == [("lead 0.5 (a)", [0, 1]), ("lead 0.5, slow", [2])]


def test_models_that_were_evaluated_alone_are_seeds_of_each_other_by_their_weights(make_run: MakeRun) -> None:
    def evaluated(seed: int, weights: str) -> RunResult:
        run = make_run("student", 10, role="base", seed=seed)
        results = [result.model_copy(update={"weights_hash": weights}) for result in run.evaluations]
        return run.model_copy(update={"recipe": None, "evaluations": results})

    runs = [evaluated(0, "a"), evaluated(1, "b"), evaluated(2, "a")]
    found = [(one.name, [run.seed for run in one.runs]) for one in find_conditions(runs)]
    assert found == [("student #1", [0, 2]), ("student #2", [1])]


def test_a_condition_of_a_study_is_called_by_its_whole_name_though_no_other_shares_the_label(make_run: MakeRun) -> None:
    trial = {"study": "toy", "axes": ["unchecked"], "control": None}
    unchecked = {"data": {"train": {"path": "unchecked"}}, "trial": trial}
    runs = [make_run("lead 0.8", 10, seed=s, name="lead 0.8, unchecked", settings=unchecked) for s in (0, 1)]
    runs += [make_run("full", 20, FULL, name="teacher checked", control="before"), make_run("lead 0.5", 10, name="a")]
    found = find_conditions(runs)
    assert [one.name for one in found] == ["lead 0.8, unchecked", "teacher checked", "lead 0.5"]


def test_rollouts_are_compared_with_uncut_traces_and_only_without_them_with_whole_rollouts(make_run: MakeRun) -> None:
    def on_policy(name: str, horizon: dict[str, Any]) -> RunResult:
        loss = {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}}
        return make_run(name, 9, FULL, name=name, settings={"rollout": {"horizon": horizon}, "loss": loss})

    rollouts = [
        on_policy("adaptive", {"kind": "adaptive"}),
        on_policy("short", {"kind": "fixed", "tokens": 100}),
        on_policy("growing", {"kind": "linear", "start": 100, "end": 2048}),
        on_policy("whole", {"kind": "share", "share": 1}),
    ]
    names = [run.name for run in rollouts]
    assert references(rollouts) == dict.fromkeys(names, "whole")
    traces = [make_run("full", 9, FULL), make_run("lead 0.5", 5)]
    assert references([*rollouts, *traces]) == dict.fromkeys([*names, "full", "lead 0.5"], "full")


def test_a_name_that_tells_the_seeds_apart_is_no_condition_s(make_run: MakeRun) -> None:
    runs = [make_run("lead 0.5", 10, seed=seed, name=f"lead 0.5, seed {seed}") for seed in (0, 1)]
    assert [one.name for one in find_conditions(runs)] == ["lead 0.5"]


def test_places_and_prices_do_not_part_the_seeds_of_a_condition(make_run: MakeRun) -> None:
    places = [{"output": f"runs/{seed}", "plan": {"price_per_hour": seed}} for seed in (0, 1)]
    runs = [make_run("lead 0.5", 10, seed=seed, settings=places[seed]) for seed in (0, 1)]
    assert len(find_conditions(runs)) == 1


def test_runs_of_one_name_are_called_by_their_directories(make_run: MakeRun) -> None:
    changes = [
        {"output": f"runs/{name}", "training": {"learning_rate": rate}} for name, rate in (("a", 1e-4), ("b", 1e-5))
    ]
    runs = [make_run("lead 0.5", 10, name="mine", settings=settings) for settings in changes]
    assert [one.name for one in find_conditions(runs)] == ["lead 0.5 (mine) in a", "lead 0.5 (mine) in b"]


def test_the_same_run_twice_is_no_second_seed(make_run: MakeRun) -> None:
    runs = [make_run("lead 0.5", 10), make_run("lead 0.5", 10)]
    assert [(one.name, len(one.runs)) for one in find_conditions(runs)] == [("lead 0.5 #1", 1), ("lead 0.5 #2", 1)]


def test_the_lengths_of_an_equal_length_control_may_differ_from_seed_to_seed(make_run: MakeRun) -> None:
    lengths = [{"training": {"steps": 90 + seed}, "data": {"num_train": 500 + seed}} for seed in (0, 1)]
    runs = [make_run("lead 0.5", 10, seed=s, settings=lengths[s], control="equal_tokens") for s in (0, 1)]
    assert len(find_conditions(runs)) == 1
    assert len(find_conditions([run.model_copy(update={"control": None}) for run in runs])) == 2


def test_cross_entropy_alone_is_no_reference_where_a_run_has_a_teacher(make_run: MakeRun) -> None:
    alone = make_run("full", 39, FULL, name="full, cross-entropy", settings=UNTAUGHT, control="cross_entropy")
    taught = make_run("full", 30, FULL, settings=TAUGHT)
    lead = make_run("lead 0.5", 15, settings=TAUGHT)
    assert references([alone, taught, lead]) == {"full, cross-entropy": "full", "full": "full", "lead 0.5": "full"}
    assert references([alone, lead])["lead 0.5"] is None
    unmarked = alone.model_copy(update={"control": None})
    assert references([unmarked, lead])["lead 0.5"] is None


def test_with_a_teacher_and_without_each_cut_has_the_uncut_run_of_its_kind(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, settings=UNTAUGHT), make_run("lead 0.5", 15, settings=UNTAUGHT)]
    runs += [make_run("full, teacher", 35, FULL, settings=TAUGHT), make_run("lead 0.5, teacher", 20, settings=TAUGHT)]
    for order in (runs, runs[::-1]):
        assert references(order) == {
            "full": "full",
            "lead 0.5": "full",
            "full, teacher": "full, teacher",
            "lead 0.5, teacher": "full, teacher",
        }
    # With no uncut run of its own kind, a student without a teacher is compared with one that had it.
    assert references(runs[1:])["lead 0.5"] == "full, teacher"


def test_in_a_study_without_any_teacher_the_uncut_run_is_the_reference(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, settings=UNTAUGHT), make_run("lead 0.5", 15, settings=UNTAUGHT)]
    assert references(runs)["lead 0.5"] == "full"


def test_targets_from_a_store_are_a_teacher(make_run: MakeRun) -> None:
    stored = {"teacher": None, "targets": {"kind": "store", "path": "store"}}
    found = find_conditions([make_run("lead 0.5", 1, settings=settings) for settings in (stored, UNTAUGHT)])
    assert [condition.has_teacher for condition in found] == [True, False]


@pytest.mark.parametrize("control", ["equal_tokens", "equal_steps", "before"])
def test_an_uncut_control_is_no_reference(make_run: MakeRun, control: str) -> None:
    longer = {"training": {"steps": 99}}
    runs = [
        make_run("full", 39, FULL, name="full, longer", settings=longer, control=control),
        make_run("full", 30, FULL),
        make_run("lead 0.5", 15, name="lead 0.5, longer", settings=longer),
    ]
    assert references(runs)["lead 0.5, longer"] == "full"


def test_among_several_the_reference_differs_in_the_fewest_settings(make_run: MakeRun) -> None:
    supervised = {"supervision": {"prompt": 0, "answer": 0}}
    runs = [
        make_run("full", 30, FULL),
        make_run("full", 28, FULL, name="full, cot only", settings=supervised),
        make_run("lead 0.5", 15),
        make_run("lead 0.5", 14, name="lead 0.5, cot only", settings=supervised),
    ]
    found = references(runs)
    assert (found["lead 0.5"], found["lead 0.5, cot only"]) == ("full", "full, cot only")


def test_an_uncut_run_that_no_cut_is_compared_with_is_compared_itself(make_run: MakeRun) -> None:
    names = ("cot", "answer")
    only = {name: {"supervision": {"cot": float(name == "cot"), "answer": float(name == "answer")}} for name in names}
    runs = [make_run("full", 28, FULL, name=f"full, {name}", settings=only[name]) for name in names]
    runs += [make_run("full", 30, FULL, settings={"supervision": {"cot": 1.0, "answer": 1.0}})]
    assert references(runs) == {"full, cot": "full, cot", "full, answer": "full, cot", "full": "full, cot"}
    runs += [make_run("lead 0.5", 15, settings={"supervision": {"cot": 1.0, "answer": 1.0}})]
    assert set(references(runs).values()) == {"full"}


def test_another_student_is_no_reference(make_run: MakeRun) -> None:
    small, large = ({"student": pretrained(name)} for name in ("small", "large"))
    runs = [make_run("full", 30, FULL, settings=large), make_run("lead 0.5", 15, settings=small)]
    assert references(runs)["lead 0.5"] is None


def test_a_base_belongs_to_the_students_that_began_from_it(make_run: MakeRun) -> None:
    def untrained(name: str) -> RunResult:
        run = make_run(name, 5, role="base")
        evaluated = run.evaluations[0].model_copy(update={"model": name})
        return run.model_copy(update={"recipe": None, "evaluations": [evaluated]})

    trained = make_run("base", 6, role="base")
    students = [
        make_run("full", 30, FULL, name=f"full, {name}", settings={"student": pretrained(path)})
        for name, path in (("small", "small"), ("own", "runs/base/student"), ("other", "elsewhere"))
    ]
    conditions = find_conditions([untrained("small"), untrained("large"), trained, *students])
    found = [base_of(one, conditions) for one in conditions if one.first.role == "student"]
    assert [base.name if base else None for base in found] == ["small", "base", None]
    base = next(one for one in conditions if one.name == "small")
    reference = find_references(conditions)[base.name]
    assert reference is not None and reference.runs[0].name == "full, small"


def test_an_axis_that_amounts_to_a_control_counts_as_one(make_run: MakeRun) -> None:
    window = {"kind": "mix", "whole_share": 0.1, "policy": {"kind": "random_window", "p": 0.5, "stop": "none"}}
    mix = {"kind": "mix", "whole_share": 0.1, "policy": {"kind": "lead", "p": 0.5, "stop": "none", "align": "token"}}
    runs = [
        make_run("mix 0.9 lead 0.5", 15, mix, settings=TAUGHT),
        make_run("mix 0.9 random_window 0.5", 15, window, settings=TAUGHT),
        make_run("mix 0.9 lead 0.5", 15, mix, name="mix 0.9 lead 0.5, plain", settings=UNTAUGHT),
        make_run("lead 0.5", 15, settings=TAUGHT),
    ]
    conditions = find_conditions(runs)
    found = [(control, other.name) for control, other in counterparts(conditions[0], conditions)]
    assert found == [("random_window", "mix 0.9 random_window 0.5"), ("cross_entropy", "mix 0.9 lead 0.5, plain")]
    tails = [make_run("tail 0.5", 15, {"kind": "tail", "p": 0.5}, settings=TAUGHT, name=name) for name in ("a", "b")]
    twice = find_conditions(tails)
    assert len(twice) == 2 and not counterparts(twice[0], twice)


@pytest.mark.parametrize(
    ("cut", "p"),
    [
        ({"kind": "lead", "p": 0.5}, 0.5),
        ({"kind": "mix", "policy": {"kind": "lead", "p": 0.25}}, 0.25),
        ({"kind": "schedule", "policy": {"kind": "lead", "p": 0.25}, "start": 0.25, "end": 0.5}, None),
        ({"kind": "budget", "num_tokens": 100}, None),
        ({"kind": "full"}, None),
    ],
)
def test_the_proportion_is_that_of_the_cut_or_of_its_mix(
    make_run: MakeRun, cut: dict[str, Any], p: float | None
) -> None:
    policy = make_run("x", 1, cut).policy
    assert policy is not None and policy.proportion == p
