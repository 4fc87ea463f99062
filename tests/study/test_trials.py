import json
from pathlib import Path
from typing import Any

import pytest

from leadspan.errors import SettingsError
from leadspan.recipe import Recipe, TrialId, load_recipe
from leadspan.settings import validate
from leadspan.study.controls import RunPlanner, controls
from leadspan.study.record import CaptureRecord, Event, StudyRecord, load_study, save_study
from leadspan.study.study import Keeper, StudyPlan, load_before, plan_study, planned_record
from leadspan.study.trials import Fingerprints, SharedStore, Trial, conditions, load_base, placed
from leadspan.teacher.settings import CaptureSettings
from recipes import toy_recipe, write_recipe
from studies import toy_study

LEAD = {"kind": "lead", "p": 0.5}
SCHEDULE: dict[str, Any] = {"kind": "schedule", "policy": LEAD, "start": 1, "end": 0.5}


def names(directory: Path, **changes: Any) -> list[str]:
    study, place = toy_study(directory, **changes)
    return [condition.recipe.name for condition in conditions(study, load_base(study, place))]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        pytest.param({}, ["lead 0.7"], id="the recipe alone"),
        pytest.param({"cut": [{"kind": "full"}, LEAD]}, ["full", "lead 0.5"], id="policies"),
        pytest.param(
            {"cut": [{"kind": "full"}, LEAD, {"kind": "mix", "policy": LEAD}], "p": [0.25, 0.5]},
            ["full", "lead 0.25", "lead 0.5", "mix 0.9 lead 0.25", "mix 0.9 lead 0.5"],
            id="every policy that has a p, at every p",
        ),
        pytest.param({"cut": [LEAD, {"kind": "lead"}]}, ["lead 0.5"], id="equal conditions once"),
        pytest.param(
            {"cut": [LEAD, {**LEAD, "stop": "append_eos"}, {**LEAD, "align": "step", "stop": "append_eos"}]},
            ["lead 0.5", "lead 0.5 (stop append_eos)", "lead 0.5 (stop append_eos, align step)"],
            id="cuts that differ in what labels leave out",
        ),
        pytest.param(
            {"cut": [SCHEDULE, {**SCHEDULE, "num_stages": 2}]},
            ["schedule lead 1-0.5", "schedule lead 1-0.5 (num_stages 2)"],
            id="schedules of more and of fewer stages",
        ),
        pytest.param(
            {"cut": [LEAD], "supervision": {"CoT": {"answer": 0}, "all": {"prompt": 1}}, "loss": {"soft": {}}},
            ["lead 0.5, CoT, soft", "lead 0.5, all, soft"],
            id="every combination",
        ),
        pytest.param(
            {"cut": [LEAD], "settings": {"slow": ["training.learning_rate=1e-5"]}}, ["lead 0.5, slow"], id="any setting"
        ),
    ],
)
def test_conditions(tmp_path: Path, axes: dict[str, Any], expected: list[str]) -> None:
    assert names(tmp_path, axes=axes) == expected


def test_a_cut_for_all_trials_of_a_set_without_cuts_is_no_fault(tmp_path: Path) -> None:
    more = {"loss": {"soft": {"temperature": 2}}}
    changed = names(tmp_path, settings=["cut.p=0.3"], axes={"cut": [LEAD]}, more_axes=[more])
    assert changed == ["lead 0.5", "lead 0.3, soft"]


def test_two_conditions_of_one_name_are_refused(tmp_path: Path) -> None:
    axes = {"cut": [LEAD], "supervision": {"other": {"prompt": 1}}}
    more = {"cut": [LEAD], "loss": {"other": {"temperature": 2}}}
    assert names(tmp_path, axes=axes, more_axes=[axes]) == ["lead 0.5, other"]
    with pytest.raises(SettingsError, match=r"1 names stand for several conditions each.*'lead 0.5, other'"):
        names(tmp_path, axes=axes, more_axes=[more])


def test_windows_of_cuts_that_differ_in_their_stop_have_names_of_their_own(tmp_path: Path) -> None:
    axes = {"cut": [{"kind": "full"}, LEAD, {**LEAD, "stop": "append_eos"}]}
    study, place = toy_study(tmp_path, axes=axes, controls=["random_window"], seeds=[0])
    windows = [trial.recipe.name for trial in plan_study(study, place).trials if trial.control == "random_window"]
    assert windows == ["random_window 0.5", "random_window 0.5 (stop append_eos)"]


def test_a_window_that_is_a_control_has_another_name_than_one_that_is_a_condition(tmp_path: Path) -> None:
    axes = {"cut": [{"kind": "full"}, {**LEAD, "stop": "append_eos"}, {"kind": "random_window", "p": 0.5}]}
    study, place = toy_study(tmp_path, axes=axes, controls=["random_window"], seeds=[0])
    windows = [(trial.recipe.name, trial.control) for trial in plan_study(study, place).trials][2:]
    assert windows == [("random_window 0.5", None), ("random_window 0.5 (stop append_eos)", "random_window")]


def test_students_that_learn_from_rollouts_alone_have_no_controls_of_their_cut(tmp_path: Path) -> None:
    on_policy = ["rollout={horizon: {kind: fixed, tokens: 8}}", "loss={kl_weight: 1}"]
    wanted: list[Any] = ["equal_tokens", "random_window"]

    def made(*more: str) -> list[str]:
        study, place = toy_study(tmp_path, axes={"cut": [LEAD]}, settings=[*on_policy, *more], controls=wanted)
        trials, notes = controls(study, conditions(study, load_base(study, place)), RunPlanner())
        return [*(trial.recipe.name for trial in trials), *(note.partition(":")[0] for note in notes)]

    assert made() == ["equal_tokens", "random_window"]  # which notes say
    assert made("rollout.trace_share=0.5") == ["random_window 0.5", "equal_tokens"]


def test_a_quantised_teacher_is_evaluated_as_it_is(tmp_path: Path) -> None:
    teacher = {"kind": "pretrained", "path": str(tmp_path / "big"), "quantization": "bitsandbytes_8bit"}
    study, place = toy_study(tmp_path, settings=["teacher=" + json.dumps(teacher)], controls=["teacher"])
    varied = conditions(study, load_base(study, place))
    [trial], _ = controls(study, varied, RunPlanner())
    recipe = placed(trial, study, Fingerprints({})).recipe
    assert load_recipe(write_recipe(recipe, tmp_path / "written.yaml")) == recipe  # as a run writes and reads it
    trained = recipe.model_dump(mode="json") | {"trial": None}
    with pytest.raises(SettingsError, match="quantised weights cannot be trained"):
        validate(Recipe, trained, "trained")


def test_axes_change_what_they_say_and_no_more(tmp_path: Path) -> None:
    changes = {
        "supervision": {"CoT": {"answer": 0}},
        "loss": {"hard": {"kl_weight": 0}, "soft": {"kl_weight": 0.9}},
        "data": {"few": {"num_train": 7, "validation": {"kind": "none"}}},
        "settings": {"slow": ["training.learning_rate=1e-5"]},
    }
    study, place = toy_study(tmp_path, axes=changes, settings=["loss.temperature=2"])
    hard, soft = (condition.recipe for condition in conditions(study, load_base(study, place)))
    base = toy_recipe(tmp_path)
    assert hard.teacher is None and soft.teacher == base.teacher and soft.loss.kl_weight == 0.9
    for recipe in (hard, soft):
        assert (recipe.supervision.prompt, recipe.supervision.cot, recipe.supervision.answer) == (0, 1, 0)
        assert recipe.data.num_train == 7 and recipe.data.validation.kind == "none"
        assert recipe.data.train == base.data.train and recipe.training.learning_rate == 1e-5
        assert recipe.loss.temperature == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"recipe": "none.yaml"}, r"none.yaml: cannot be read", id="no recipe"),
        pytest.param({"settings": ["loss=3"]}, r"loss = 3", id="a loss that is none"),
        pytest.param({"axes": {"loss": {"x": {"kl_wait": 1}}}}, r"did you mean 'kl_weight'", id="unknown key"),
        pytest.param({"axes": {"p": [0.5]}}, r"no policy of axes.cut has a p", id="p without a policy"),
        pytest.param(
            {"axes": {"cut": [{"kind": "mix", "policy": {"kind": "budget", "num_tokens": 9}}], "p": [0.5]}},
            r"no policy of axes.cut has a p",
            id="p without a policy in a mix",
        ),
        pytest.param(
            {"axes": {"settings": {"a": ["seed=3"]}}},
            r"axes: settings.a: seed is set by the study",
            id="seed as an axis",
        ),
        pytest.param({"settings": ["output=x"]}, r"settings: output is set by the study", id="output of all trials"),
        pytest.param(
            {"settings": ["cut.p=0.3"], "more_axes": [{"cut": [LEAD]}]},
            r"settings: every value of axes.cut replaces cut; change it there",
            id="a cut that no trial has",
        ),
        pytest.param({"seeds": []}, r"seeds is empty", id="no seeds"),
        pytest.param({"seeds": [1, 1]}, r"each may be given only once", id="a seed twice"),
        pytest.param({"controls": ["equal_time"]}, r"controls.0 = 'equal_time'", id="unknown control"),
    ],
)
def test_wrong_studies_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        names(tmp_path, **changes)


def test_more_axes_are_crossed_by_themselves_and_get_base_and_teacher_only(tmp_path: Path) -> None:
    changes = {
        "axes": {"cut": [{"kind": "full"}, LEAD]},
        "more_axes": [
            {"cut": [LEAD], "supervision": {"CoT": {"answer": 0}, "CoT+A": {}}},
            {"cut": [{"kind": "full"}], "student": {"other": {"kind": "pretrained", "path": str(tmp_path)}}},
        ],
        "seeds": [0],
        "controls": ["random_window", "cross_entropy", "base"],
    }
    assert names(tmp_path, **changes) == ["full", "lead 0.5", "lead 0.5, CoT", "full, other"]
    study, place = toy_study(tmp_path, **changes)
    trials = [(t.recipe.name, t.control) for t in plan_study(study, place).trials]
    assert sorted((name.split(":")[0], control) for name, control in trials if control) == [
        ("base 1", "base"),
        ("base 2", "base"),
        ("full, cross-entropy", "cross_entropy"),
        ("lead 0.5, cross-entropy", "cross_entropy"),
        ("random_window 0.5", "random_window"),
    ]
    assert [name for name, control in trials if not control] == names(tmp_path, **changes)


def test_what_comes_first_may_have_settings_of_its_own(tmp_path: Path) -> None:
    toy_study(tmp_path)  # writes recipe.yaml
    changed = {"recipe": "recipe.yaml", "settings": [f"output={tmp_path}/other", "role=base"]}
    study, place = toy_study(tmp_path, before=["recipe.yaml", changed])
    first, second = (trial.recipe for trial in load_before(study, place))
    assert first.model_copy(update={"trial": None}) == load_recipe(tmp_path / "recipe.yaml")
    assert first.role == "student"
    assert (second.output, second.role) == (tmp_path / "other", "base")
    with pytest.raises(SettingsError, match="unknown key; did you mean 'role'"):
        load_before(toy_study(tmp_path, before=[{"recipe": "recipe.yaml", "settings": ["rol=base"]}])[0], place)


def control_trials(directory: Path, *asked: str, **changes: Any) -> tuple[list[Trial], list[str]]:
    study, place = toy_study(directory, controls=list(asked), **changes)
    return controls(study, conditions(study, load_base(study, place)), RunPlanner())


@pytest.mark.slow
def test_equal_tokens_trains_on_more_traces_until_the_tokens_are_those_of_the_uncut_run(tmp_path: Path) -> None:
    few = ["data.num_train=10", "training.steps=5", "data.validation={kind: none}"]
    (trial,), notes = control_trials(tmp_path, "equal_tokens", settings=few)
    study, place = toy_study(tmp_path, settings=few)
    full, lead = (condition.recipe for condition in conditions(study, load_base(study, place)))
    plan = RunPlanner()
    goal, own, longer = plan(full), plan(lead), plan(trial.recipe)
    assert trial.recipe.name == "lead 0.5, equal tokens" and not notes
    assert 0.45 * goal.num_tokens < own.num_tokens < 0.5 * goal.num_tokens
    assert abs(longer.num_tokens - goal.num_tokens) <= longer.num_tokens / longer.num_steps  # within a step
    assert trial.recipe.data.num_train is not None and 20 <= trial.recipe.data.num_train <= 22
    assert trial.recipe.training.steps == longer.num_steps and trial.recipe.cut == lead.cut


@pytest.mark.slow
def test_equal_tokens_says_when_traces_are_repeated(tmp_path: Path) -> None:
    (trial,), _ = control_trials(tmp_path, "equal_tokens", settings=["data.num_train=30"])
    assert trial.recipe.data.num_train == 32 and "seen" not in trial.note  # of 40, 8 held out; each is seen once
    (trial,), _ = control_trials(tmp_path, "equal_tokens", settings=["data.num_train=30", "training.steps=4"])
    assert "which are all there are: each is seen 2 times" in trial.note


@pytest.mark.slow
def test_equal_steps_where_batches_are_packed_by_tokens(tmp_path: Path) -> None:
    by_tokens = ["training.steps=null", "training.epochs=2", "training.batching={kind: tokens, tokens_per_batch: 400}"]
    (trial,), _ = control_trials(tmp_path, "equal_steps", settings=by_tokens)
    study, place = toy_study(tmp_path, settings=by_tokens)
    full, lead = (condition.recipe for condition in conditions(study, load_base(study, place)))
    assert RunPlanner()(full).num_steps == trial.recipe.training.steps > RunPlanner()(lead).num_steps
    none, notes = control_trials(tmp_path, "equal_steps")
    assert none == [] and "as many optimiser steps as the uncut run already" in notes[0]


def test_controls_without_a_plan(tmp_path: Path) -> None:
    asked = ("random_window", "cross_entropy", "base", "teacher")
    trials, notes = control_trials(tmp_path, *asked, seeds=[0, 5])
    titles = [(trial.title, trial.task) for trial in trials]
    assert titles == [
        ("random_window 0.5, seed 0", "distill"),
        ("random_window 0.5, seed 5", "distill"),
        *((f"{cut}, cross-entropy, seed {seed}", "distill") for cut in ("full", "lead 0.5") for seed in (0, 5)),
        ("base", "evaluate"),
        ("teacher", "evaluate"),
    ]
    assert not notes
    assert {(t.recipe.teacher, t.recipe.loss.kl_weight) for t in trials if t.control == "cross_entropy"} == {(None, 0)}
    assert trials[-1].recipe.student == toy_recipe(tmp_path).teacher and trials[-1].recipe.role == "teacher"
    with pytest.raises(SettingsError, match=r"base is evaluated only, and the recipe has no evaluation.tasks"):
        control_trials(tmp_path, "base", settings=["evaluation.tasks=[]"])


def test_conditions_that_need_their_teacher_have_no_cross_entropy_control(tmp_path: Path) -> None:
    by_teacher = ["supervision.token_selection={kind: teacher_entropy, share: 0.5}"]
    axes = {"cut": [LEAD], "settings": {"all": [], "few": by_teacher}}
    trials, notes = control_trials(tmp_path, "cross_entropy", axes=axes)
    assert [trial.recipe.name for trial in trials] == ["lead 0.5, all, cross-entropy"]
    (note,) = notes
    assert note.startswith("cross_entropy: lead 0.5, few needs its teacher: supervision.token_selection")
    trials, (note,) = control_trials(tmp_path, "cross_entropy", settings=by_teacher, axes={"cut": [LEAD]})
    assert trials == [] and "lead 0.5 needs its teacher" in note


def test_a_study_without_a_task_is_refused_before_anything_runs(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path, settings=["evaluation.tasks=[]"])
    with pytest.raises(SettingsError, match=r"study toy: evaluation.tasks of recipe.yaml is empty \(full, seed 0\)"):
        plan_study(study, place)
    assert not study.output.exists()


def test_a_directory_follows_from_settings_and_data(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path)
    recipe = conditions(study, load_base(study, place))[1].recipe
    first = placed(Trial(recipe, axes=("slow",)), study, Fingerprints({}))
    assert first.recipe.trial == TrialId(study="toy", axes=["slow"], control=None)
    assert Fingerprints({}).of(first.recipe) == first.fingerprint
    assert first.recipe.output.name == f"lead-0.5-seed0-{first.fingerprint[:8]}"
    renamed = recipe.model_copy(update={"name": "another", "output": Path("elsewhere")})
    assert Fingerprints({}).of(renamed) == first.fingerprint
    assert Fingerprints({}).of(recipe.model_copy(update={"seed": 1})) != first.fingerprint
    for changed in (tmp_path / "traces.jsonl", tmp_path / "task.jsonl", tmp_path / "tokenizer" / "tokenizer.json"):
        before = changed.read_bytes()
        changed.write_bytes(before + b"\n")
        assert Fingerprints({}).of(recipe) != first.fingerprint, changed.name
        changed.write_bytes(before)
    assert Fingerprints({}).of(recipe) == first.fingerprint


def test_a_name_in_any_script_gives_a_directory_that_can_be_made(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, name="\N{CJK UNIFIED IDEOGRAPH-20000}" * 90)
    study, _ = toy_study(tmp_path)
    directory = placed(Trial(recipe), study, Fingerprints({})).recipe.output
    directory.mkdir(parents=True)
    assert len(directory.name.encode()) <= 255


def test_every_split_of_a_directory_counts_by_what_is_read_of_it(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    directory.mkdir()
    task = {"name": "toy", "path": str(directory), "grader": "exact"}
    data: dict[str, Any] = {"train": {"path": str(directory)}, "cache_dir": str(tmp_path / "cache")}
    data["validation"] = {"kind": "source", "source": {"path": str(directory), "split": "validation"}}
    prompts = {"kind": "task", "task": {**task, "path": str(tmp_path / "prompts.jsonl")}}
    recipe = toy_recipe(
        tmp_path, data=data, evaluation={"tasks": [task]}, rollout={"prompts": prompts}, loss={"kl_weight": 1}
    )
    files = [directory / f"{split}.jsonl" for split in ("train", "validation", "test")] + [tmp_path / "prompts.jsonl"]
    for file in files:
        file.write_text('{"problem": "1", "answer": "1"}\n')
    first = Fingerprints({}).of(recipe)
    for file in files:
        before = file.read_bytes()
        file.write_bytes(before.replace(b"1", b"2"))
        assert Fingerprints({}).of(recipe) != first, file.name
        file.write_bytes(before)
    assert Fingerprints({}).of(recipe) == first
    moved = {**prompts, "task": {**task, "path": str(files[-1].rename(tmp_path / "moved.jsonl"))}}
    assert Fingerprints({}).of(recipe.model_validate(recipe.model_dump() | {"rollout": {"prompts": moved}})) == first


def test_a_fingerprint_does_not_depend_on_the_recipes_before_it(tmp_path: Path) -> None:
    tasks = {"tasks": [{"name": "toy", "path": str(tmp_path / "traces.jsonl"), "grader": "exact"}]}
    on_traces, on_others = toy_recipe(tmp_path), toy_recipe(tmp_path / "others", evaluation=tasks)
    for recipes in ((on_traces, on_others), (on_others, on_traces)):
        fingerprints = Fingerprints({})
        assert [fingerprints.of(recipe) for recipe in recipes] == [Fingerprints({}).of(recipe) for recipe in recipes]


def test_a_file_that_is_named_twice_counts_as_in_earlier_versions(tmp_path: Path, monkeypatch: Any) -> None:
    """Studies of earlier versions find their runs by it."""
    monkeypatch.chdir(tmp_path)
    toy_recipe(tmp_path)
    Path("task.jsonl").write_text('{"problem": "1", "answer": "1"}\n')

    def hashes(train: str, task: str, prompts: str | None = None) -> set[str]:
        of_task = {"name": "toy", "path": task, "grader": "exact"}
        more = {"rollout": {"prompts": {"kind": "task", "task": {**of_task, "path": prompts}}}} if prompts else {}
        data = {"train": {"path": train}, "validation": {"kind": "none"}}
        recipe = toy_recipe(tmp_path, data=data, evaluation={"tasks": [of_task]}, loss={"kl_weight": 1}, **more)
        fingerprints = Fingerprints({})
        fingerprints.of(recipe)
        return {key for key in fingerprints.hashes if "jsonl" in key}

    train = "traces.jsonl train None"
    assert hashes("traces.jsonl", "./traces.jsonl") == {train, "traces.jsonl test None"}
    assert hashes("./traces.jsonl", "./traces.jsonl") == {train, "traces.jsonl"}
    assert hashes("traces.jsonl", "task.jsonl", "task.jsonl") == {train, "task.jsonl"}


def test_what_is_made_first_is_known_by_how_it_is_made(tmp_path: Path) -> None:
    student = {"kind": "pretrained", "path": str(tmp_path / "made" / "student")}
    made = toy_recipe(tmp_path, output=str(tmp_path / "made"))
    recipe = toy_recipe(tmp_path, student=student)
    known = Fingerprints({made.output: "a"}).of(recipe)
    (tmp_path / "made" / "student").mkdir(parents=True)
    (tmp_path / "made" / "student" / "model.safetensors").write_bytes(b"weights")
    assert Fingerprints({made.output: "a"}).of(recipe) == known
    assert Fingerprints({made.output: "b"}).of(recipe) != known
    assert Fingerprints({}).of(recipe) != Fingerprints({tmp_path / "other": "a"}).of(made)


def test_seeds_come_whole_one_after_the_other(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path, seeds=[3, 1], controls=["random_window", "base"])
    titles = [trial.title for trial in plan_study(study, place).trials]
    assert titles == [
        "base",
        *("full, seed 3", "lead 0.5, seed 3", "random_window 0.5, seed 3"),
        *("full, seed 1", "lead 0.5, seed 1", "random_window 0.5, seed 1"),
    ]


def test_a_trial_that_fails_before_it_starts_is_a_failure(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path)
    plan = plan_study(study, place)
    study.output.mkdir(parents=True)
    (study.output / "study.json").write_text('{"study": "ours"}')
    keeper = Keeper(study, plan)
    assert (study.output / "study.json.damaged").read_text() == '{"study": "ours"}'
    keeper.note(plan.trials[0], Event(0, "failed", "all nodes must see the study's files"))
    first = load_study(study.output).trials[0]
    assert (first.state, first.message, first.seconds) == ("failed", "all nodes must see the study's files", None)


def test_a_run_that_comes_first_is_not_taken_for_the_condition_of_its_recipe(tmp_path: Path) -> None:
    changes = ["cut={kind: full}", f"output={tmp_path / 'first'}"]
    study, place = toy_study(
        tmp_path, axes={"cut": [{"kind": "full"}]}, before=[{"recipe": "recipe.yaml", "settings": changes}]
    )
    plan = plan_study(study, place)
    assert plan.before[0].fingerprint == plan.trials[0].fingerprint
    keeper = Keeper(study, plan)
    keeper.note(plan.before[0], Event(0, "failed", "no memory"))
    assert [(trial.control, trial.state) for trial in load_study(study.output).trials] == [
        ("before", "failed"),
        (None, "waiting"),
    ]
    assert [trial.state for trial in planned_record(study, plan).trials] == ["failed", "waiting"]


def test_a_removed_store_keeps_its_counts_and_has_the_trials_of_today(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path)
    trials = plan_study(study, place).trials
    codec = {"kind": "top_k", "k": 8}
    store = SharedStore(
        directory=study.output / "store" / "gone",
        fingerprint="abc",
        settings=CaptureSettings.model_validate({"codec": codec}),
        recipes=[trial.recipe for trial in trials],
    )
    earlier = CaptureRecord(name="old", directory="store/gone", state="failed", message="?", num_trials=9, num_bytes=5)
    save_study(StudyRecord(name="toy", study=study, trials=[], captures=[earlier]), study.output)
    (capture,) = planned_record(study, StudyPlan([], trials, stores=[store])).captures
    assert (capture.name, capture.num_trials, capture.num_bytes) == (store.title, 2, 5)
    assert (capture.state, capture.message) == ("waiting", "")


def test_a_condition_that_gets_another_name_keeps_its_run_directory(tmp_path: Path) -> None:
    stopped = {**LEAD, "stop": "append_eos"}
    study, place = toy_study(tmp_path, axes={"cut": [stopped]}, seeds=[0])
    (first,) = plan_study(study, place).trials
    first.recipe.output.mkdir(parents=True)
    study, place = toy_study(tmp_path, axes={"cut": [LEAD, stopped]}, seeds=[0])
    plain, again = plan_study(study, place).trials
    assert again.recipe.name == "lead 0.5 (stop append_eos)" and again.recipe.output == first.recipe.output
    assert plain.recipe.output != first.recipe.output


def test_controls_are_named_after_their_conditions(tmp_path: Path) -> None:
    changes = {
        "axes": {"cut": [{**LEAD, "align": "step"}]},
        "more_axes": [{"cut": [LEAD]}],
        "controls": ["random_window", "cross_entropy"],
        "seeds": [0],
    }
    study, place = toy_study(tmp_path, **changes)
    trials = [trial for trial in plan_study(study, place).trials if trial.control]
    assert [trial.recipe.name for trial in trials] == ["random_window 0.5", "lead 0.5 (align step), cross-entropy"]
    assert [trial.recipe.trial and trial.recipe.trial.control for trial in trials] == ["random_window", "cross_entropy"]
