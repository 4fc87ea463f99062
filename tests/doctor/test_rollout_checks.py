"""What the doctor says of the rollouts of a student."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leadspan.doctor.doctor import _drawn, _ends, _Look, _look, rollouts
from leadspan.doctor.fit_checks import Check, CheckInputs, disk_and_memory, end_of_turn, stored_targets
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.pipeline.run import prepare_capture
from leadspan.planning.prediction import cost_model_of, predict
from leadspan.planning.rollouts import predict_run
from leadspan.recipe import Recipe
from leadspan.rollout.settings import RolloutSettings
from leadspan.stages import rollout_inputs
from leadspan.tables import quantity
from leadspan.teacher.capture import run_capture
from leadspan.teacher.settings import StoredTargets
from leadspan.teacher.targets import freeze
from recipes import toy_recipe
from toys import tiny

ROLLOUT = {"max_new_tokens": 60, "horizon": {"kind": "fixed", "tokens": 8}}
LOSS = {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}}


def check_inputs(directory: Path, teacher: RandomInit, **changes: object) -> CheckInputs:
    recipe: Recipe = toy_recipe(directory, teacher=teacher.model_dump(), rollout=ROLLOUT, **{"loss": LOSS, **changes})
    student, model = (freeze(load_model(settings, torch.float32)) for settings in (tiny(seed=1), teacher))
    return CheckInputs(recipe, prepare_data(recipe), student, model, [], [], torch.device("cpu"))


def checks(inputs: CheckInputs) -> dict[str, Check]:
    return {check.name.split()[-1]: check for check in rollouts(inputs)}


def test_a_teacher_that_is_the_student_agrees_and_another_does_not(tmp_path: Path) -> None:
    same, other = (checks(check_inputs(tmp_path, teacher)) for teacher in (tiny(seed=1), tiny(hidden=48, seed=2)))
    assert same["rollouts"].verdict == same["alike"].verdict == "ok" and "at 100.0 %" in same["rollouts"].figure
    assert other["rollouts"].verdict == "warning" and "cold_start" in other["rollouts"].remedy
    assert same["does"].verdict == "warning"  # it ends by chance, and would as soon have gone on


def test_rollouts_that_do_not_end_are_said_to_be_as_long_as_they_were() -> None:
    looks = [_Look(overlap=1.0, opens=(0.0, 0.0), stop=None)] * 3
    assert _ends(looks, merges_stops=True, cap=48).figure == "none of 3 rollouts ends within 48 tokens"


def test_probabilities_at_the_first_token_and_where_the_student_stops(tmp_path: Path) -> None:
    inputs = check_inputs(tmp_path, tiny(hidden=48, seed=2))
    assert inputs.recipe.rollout is not None
    made_of = rollout_inputs(inputs.recipe, inputs.data, inputs.recipe.rollout)
    rollout = next(one for one in _drawn(inputs, made_of, 60) if one.ending == "stop")
    with torch.no_grad():
        look = _look(inputs, made_of, rollout)
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.new_ids]])
        student, teacher = (
            load_model(settings, torch.float32, for_training=False)(ids).logits[0].softmax(-1)
            for settings in (tiny(seed=1), tiny(hidden=48, seed=2))
        )
    start, opening = len(rollout.prompt.ids) - 1, inputs.data.renderer.tokenizer.convert_tokens_to_ids("<think>")
    assert look.opens == pytest.approx((float(student[start, opening]), float(teacher[start, opening])), rel=1e-4)
    before = teacher[-2]
    expected = float(before[list(made_of.stop_ids)].sum()), float(before[rollout.new_ids[-1]])
    assert look.stop == pytest.approx(expected, rel=1e-4)


def test_a_store_of_rollouts_alone_serves_no_traces_and_memory_is_that_of_rollouts(tmp_path: Path) -> None:
    capture = {"path": str(tmp_path / "store"), "codec": {"kind": "hidden"}}
    inputs = check_inputs(tmp_path, tiny(hidden=48, seed=2), capture=capture)
    run_capture(prepare_capture(inputs.recipe))
    targets = StoredTargets(path=tmp_path / "store")
    stored = replace(inputs, recipe=inputs.recipe.model_copy(update={"targets": targets}))
    [check] = stored_targets(stored)
    assert check.verdict == "ok" and check.figure.startswith("8 examples served by")  # those of validation alone
    [ends] = end_of_turn(inputs)
    assert ends.verdict == "skipped"
    recipe = inputs.recipe.model_copy(update={"rollout": RolloutSettings(max_new_tokens=800)})
    model = cost_model_of(recipe, inputs.data.renderer)
    _, memory = disk_and_memory(replace(inputs, recipe=recipe))
    needed = predict_run(recipe, inputs.data, model).memory.total
    assert needed > 2 * predict(model, inputs.data.examples).memory.total
    assert memory.figure.startswith(f"{quantity('peak_memory_bytes', needed)} for the largest step")
