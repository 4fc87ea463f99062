from pathlib import Path
from typing import Any

import pytest

from leadspan.errors import SettingsError
from leadspan.inputs import prepare_data
from leadspan.pipeline.run import run
from leadspan.planning.calibration import calibrate
from leadspan.planning.prediction import check_calibration, cost_model_of
from leadspan.results import Prediction
from leadspan.stages import checked_teacher, training_inputs
from leadspan.training.result import TrainResult
from recipes import toy_recipe

SELECTIONS: dict[str, dict[str, Any]] = {
    "student entropy": {"kind": "student_entropy", "share": 0.3},
    "teacher entropy": {"kind": "teacher_entropy", "share": 0.5, "keep": "lowest"},
    "gap": {"kind": "gap", "share": 0.25},
    "random": {"kind": "random", "share": 0.25},
}
CUTS: dict[str, dict[str, Any]] = {
    "lead": {"kind": "lead", "p": 0.7},
    "lead_answer": {"kind": "lead_answer", "p": 0.3},
    "schedule": {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0.4, "end": 1.0, "num_stages": 3},
}


def predicted_and_trained(recipe: Any) -> tuple[Prediction, TrainResult]:
    result = run(recipe)
    assert result.prediction is not None and result.train is not None
    return result.prediction, result.train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cut"),
    [("student entropy", "lead"), ("teacher entropy", "lead_answer"), ("gap", "schedule"), ("random", "lead")],
)
def test_predicted_counts_are_those_of_the_run(kind: str, cut: str, tmp_path: Path) -> None:
    supervision = {"cot": 1, "answer": 2, "token_selection": SELECTIONS[kind]}
    batching = {"kind": "tokens", "tokens_per_batch": 600, "batches_per_step": 1}
    recipe = toy_recipe(tmp_path, steps=3, cut=CUTS[cut], supervision=supervision, batching=batching)
    predicted, trained = predicted_and_trained(recipe)
    assert predicted.flops == trained.flops
    assert predicted.num_tokens == trained.num_tokens and predicted.num_weighted_tokens == trained.num_weighted_tokens


@pytest.mark.slow
def test_a_calibration_measures_the_scoring_pass_and_serves_no_run_without_one(tmp_path: Path) -> None:
    scored = toy_recipe(tmp_path, supervision={"cot": 1, "token_selection": SELECTIONS["gap"]})
    plain = toy_recipe(tmp_path, supervision={"cot": 1})
    data = prepare_data(scored)
    model = cost_model_of(scored, data.renderer)
    inputs = training_inputs(scored, data, checked_teacher(scored))
    assert inputs.selection is not None
    calibration = calibrate(inputs, model, scored.loss, [data.examples], num_rounds=1)
    check_calibration(calibration, model)
    with pytest.raises(SettingsError, match="another token selection than this recipe's"):
        check_calibration(calibration, cost_model_of(plain, data.renderer))
