import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from leadspan.errors import SettingsError
from leadspan.inputs import prepare_data
from leadspan.pipeline.run import run
from leadspan.planning import calibration
from leadspan.planning.calibration import calibrate
from leadspan.planning.prediction import check_calibration, cost_model_of
from leadspan.results import Prediction
from leadspan.stages import checked_teacher, training_inputs
from leadspan.training.result import TrainResult
from leadspan.training.train import load_models
from recipes import toy_recipe
from toys import VOCAB, tiny

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
    # A head with padding: the tokens that both models have are compared, and no others are computed.
    teacher = tiny(hidden=48, vocab=VOCAB + 7, seed=2).model_dump()
    changes = {"cut": CUTS[cut], "supervision": supervision, "batching": batching, "teacher": teacher}
    predicted, trained = predicted_and_trained(toy_recipe(tmp_path, steps=3, **changes))
    assert predicted.flops == trained.flops
    if kind == "random":  # forward and twice that backward, and nothing is scored
        assert trained.flops.student_head == 3 * 2 * 32 * VOCAB * trained.num_weighted_tokens
        assert trained.flops.teacher_head == 2 * 48 * VOCAB * trained.num_weighted_tokens
    assert predicted.num_tokens == trained.num_tokens and predicted.num_weighted_tokens == trained.num_weighted_tokens


@pytest.mark.slow
def test_a_calibration_measures_the_scoring_pass_and_serves_no_run_without_one(tmp_path: Path) -> None:
    scored = toy_recipe(tmp_path, supervision={"cot": 1, "token_selection": SELECTIONS["gap"]})
    plain = toy_recipe(tmp_path, supervision={"cot": 1})
    data = prepare_data(scored)
    model = cost_model_of(scored, data.renderer)
    inputs = training_inputs(scored, data, checked_teacher(scored))
    assert inputs.selection is not None
    rates = calibrate(inputs, model, scored.loss, [data.examples], num_rounds=1)
    check_calibration(rates, model)
    with pytest.raises(SettingsError, match="another token selection than this recipe's"):
        check_calibration(rates, cost_model_of(plain, data.renderer))


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "mapped")),
        ("others", ctypes.c_size_t * 5),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or later")
def test_steps_are_measured_with_the_memory_settings_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tensor has no mapping of its own, which the kernel would zero again in every step."""
    mallinfo2, grown = ctypes.CDLL(None).mallinfo2, []
    mallinfo2.restype = MallocInfo

    def load(*arguments: Any) -> Any:
        before = mallinfo2().mapped
        tensor = torch.empty(64 << 20, dtype=torch.uint8)
        grown.append(mallinfo2().mapped - before)
        del tensor
        return load_models(*arguments)

    recipe = toy_recipe(tmp_path)
    data = prepare_data(recipe)
    inputs = training_inputs(recipe, data, checked_teacher(recipe))
    monkeypatch.setattr(calibration, "load_models", load)
    calibrate(inputs, cost_model_of(recipe, data.renderer), recipe.loss, [data.examples], num_rounds=1)
    assert grown == [0]
