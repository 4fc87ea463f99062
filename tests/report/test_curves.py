import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leadspan.report.content import build_report
from leadspan.report.figures import chart_data
from leadspan.report.inputs import ReportInputs, named_runs, read_inputs
from leadspan.report.samples import MAX_POINTS, run_curves, thinned
from leadspan.results import RunResult

LINES = [
    {"step": 1, "loss": 2.0, "divergence/cot": 1.0, "divergence/tenth_2": 1.5, "agreement/cot": 0.5, "epoch": 0.1},
    {"step": 5, "eval_loss": 1.0, "eval_divergence/cot": 0.75, "eval_divergence/tenth_0": 0.25},
    {"step": 5, "loss": 1.0, "divergence/cot": 0.5, "divergence/answer": 0.25, "divergence/tenth_2": float("nan")},
    {"step": 5, "train_runtime": 3.0},
]


@pytest.fixture
def gathered(study: list[RunResult], gathered_of: Callable[..., ReportInputs]) -> ReportInputs:
    """Runs of which the uncut one has metrics."""
    found = gathered_of(study)
    (found.directories[2] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return found


def test_training_and_validation_stay_apart(gathered: ReportInputs) -> None:
    (training, validation), _ = run_curves(named_runs(gathered))
    assert (training.label, training.measured_on, training.steps) == ("full", "training batches", [1, 5])
    assert training.sections == {
        "divergence": {"cot": [1.0, 0.5], "answer": [None, 0.25]}, "agreement": {"cot": [0.5, None]}
    }  # fmt: skip
    assert (validation.measured_on, validation.steps) == ("validation set", [5])
    assert validation.sections == {"divergence": {"cot": [0.75]}}
    assert validation.tenths == {"divergence": [0.25, *[None] * 9]}


def test_what_is_not_finite_is_null_in_the_page(gathered: ReportInputs) -> None:
    report = build_report(gathered)
    assert report.curves[0].tenths["divergence"] == [None] * 10
    json.loads(json.dumps(chart_data(report), allow_nan=False))


def test_long_curves_are_thinned_with_both_ends() -> None:
    steps = list(range(1, 1001))
    kept = thinned(steps)
    assert len(kept) == MAX_POINTS and (kept[0], kept[-1]) == (1, 1000)
    assert {later - earlier for earlier, later in itertools.pairwise(kept)} == {10, 11}
    assert thinned(steps[:7]) == steps[:7]


@pytest.mark.slow
def test_real_runs_have_curves_on_both_kinds_of_data(real_runs: list[Path]) -> None:
    curves, _ = run_curves(named_runs(read_inputs(real_runs)))
    assert [(curve.label, curve.measured_on) for curve in curves[:2]] == [
        ("full (seed 0)", "training batches"), ("full (seed 0)", "validation set")
    ]  # fmt: skip
    cut = next(curve for curve in curves if curve.policy == "lead 0.6" and curve.measured_on == "training batches")
    assert cut.divergence_kind == "forward KL" and cut.steps == [1, 2, 3, 4]
    places = cut.tenths["divergence"]
    assert places[3] is not None and places[3] > 0 and places[8:] == [None, None]
    on_validation = next(curve for curve in curves if curve.measured_on == "validation set")
    assert on_validation.tenths["divergence"][9] is not None
