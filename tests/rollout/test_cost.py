"""What rollouts cost: the bound before, and the count after."""

from pathlib import Path

import pytest
import torch
from test_on_policy import lines, on_policy
from torch.utils.flop_counter import FlopCounterMode

from leadspan.costs.flops import head_only, rollout_flops
from leadspan.data.truncation.policy import stop_warning
from leadspan.errors import SettingsError
from leadspan.evaluation.sampling import draw
from leadspan.evaluation.settings import SamplingSettings
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.models.shapes import shape_of
from leadspan.pipeline.run import run
from leadspan.planning.plan import calibration_of, plan_recipe
from leadspan.planning.prediction import cost_model_of
from leadspan.planning.rollouts import batch_work, cost_of_rollouts
from leadspan.planning.tables import sentences
from leadspan.planning.timing import Calibration, DrawingWork, fit_rates
from leadspan.report.write import run_summary
from leadspan.results import RunResult
from leadspan.rollout.settings import RolloutSettings
from leadspan.settings import validate
from toys import tiny


@pytest.mark.slow
def test_operations_of_drawing_are_those_that_pytorch_counts_but_for_attention() -> None:
    model = load_model(tiny(hidden=64, seed=1), torch.float32, for_training=False).eval()
    sampling = SamplingSettings(temperature=1, top_p=1, max_new_tokens=20)
    with FlopCounterMode(display=False) as counter:
        [new] = draw(model, [list(range(5, 15))], [20], ["key"], [1000], sampling)
    assert len(new) == 20
    counted = counter.get_total_flops()
    expected = rollout_flops(shape_of(model), [(10, 20)])
    attention = sum(4 * dim * 29 * 30 // 2 for dim in shape_of(model).attention_dims)
    assert expected - attention == pytest.approx(counted - counted_attention(counter), rel=1e-3)


def counted_attention(counter: FlopCounterMode) -> int:
    return sum(
        flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" in str(op) or "bmm" in str(op)
    )


def test_time_of_drawing_is_of_passes_of_their_rows_and_of_operations() -> None:
    student = head_only(8, 100)
    rows = [(10, 100), (12, 5), (3, 128)]
    work = batch_work(student, rows)
    assert work == (128, 128 + 64 + 128, rollout_flops(student, rows))  # rows leave behind 64 tokens
    rates = {"passes": 2.0, "rows": 0.5}
    calibration = Calibration(device="here", fingerprint="", num_steps=1, rates={}, largest_error=0, drawing=rates)
    assert calibration.drawing_seconds([work, work]) == 2 * (2 * 128 + 320 / 2)
    several = [DrawingWork(8, 8, 900), DrawingWork(8, 64, 7000), DrawingWork(64, 64, 8000), DrawingWork(64, 512, 9)]
    fitted, _ = fit_rates(several, [calibration.drawing_seconds([one]) for one in several])
    assert fitted == pytest.approx(rates)


@pytest.mark.slow
def test_the_bound_is_met_where_no_rollout_ends_before_its_cap(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"trace_share": 0.25, "whole_share": 0.25}, plan={"break_point_seconds": 0})
    data = prepare_data(recipe)
    plan = plan_recipe(recipe, data, [])
    assert plan.rollouts is not None
    assert stop_warning({row.label: row.cut for row in plan.rows}) not in ("", *sentences(plan))
    cost = plan.rollouts
    parts = cost.prefill_flops, cost.decode_flops, cost.teacher_flops, cost.training_flops
    assert sum(parts) == cost.prediction.flops.total < cost.whole_flops
    assert cost.prefill_flops + cost.decode_flops == cost.prediction.flops.rollout
    fingerprint = cost_model_of(recipe, data.renderer).fingerprint
    rates = {"rates": {"step": 3.0}, "largest_error": 0, "drawing": {"passes": 0.5}}
    timed = plan_recipe(recipe, data, [], Calibration(device="here", fingerprint=fingerprint, num_steps=1, **rates))
    assert timed.rollouts is not None  # in every step the longest is a whole one of 24 tokens, at half a second each
    assert (timed.rollouts.drawing_seconds, timed.rollouts.prediction.seconds) == (4 * 12, 4 * 12 + 4 * 3)
    assert timed.rollouts.prediction.money is None and cost.prediction.memory.process == 0
    rates["rollout_lengths"] = [3, None]
    expected = plan_recipe(recipe, data, [], Calibration(device="here", fingerprint=fingerprint, num_steps=1, **rates))
    assert expected.rollouts is not None and cost.prediction.is_bound and not expected.rollouts.prediction.is_bound
    assert expected.rollouts.prediction.memory == cost.prediction.memory
    assert f"{cost.num_rollouts}, at most {cost.new_tokens} new tokens together, in 4 steps" in " ".join(
        sentences(plan)
    )
    result = run(recipe)
    drawn = lines(recipe.output)
    assert result.prediction == cost.prediction and result.train is not None
    assert cost.new_tokens == sum(line["cap"] for line in drawn) and cost.num_rollouts == len(drawn)
    short = sum(line["cap"] - line["tokens"] for line in drawn)
    assert cost.prediction.num_tokens - result.train.num_tokens == short
    assert cost.prediction.num_weighted_tokens - result.train.num_weighted_tokens == short
    assert result.train.flops.rollout <= cost.prediction.flops.rollout
    lengths = [min(line["cap"], (3, 24)[index % 2]) for index, line in enumerate(drawn)]
    assert expected.rollouts.new_tokens == sum(lengths)


def test_a_calibration_adds_price_and_process_and_is_of_the_same_models(tmp_path: Path) -> None:
    priced = on_policy(tmp_path, {}, plan={"break_point_seconds": 0, "price_per_hour": 7200})
    data = prepare_data(priced)
    model = cost_model_of(priced, data.renderer)
    values = {"device": "here", "num_steps": 1, "rates": {"step": 3.0}, "largest_error": 0, "memory_offset": 1e6}
    calibration = Calibration(fingerprint=model.fingerprint, drawing={"passes": 0.5}, **values)
    prediction = cost_of_rollouts(priced, data, model, calibration).prediction
    assert prediction.seconds is not None and prediction.money == pytest.approx(2 * prediction.seconds)
    assert prediction.memory.process == 1_000_000
    foreign = calibration.model_copy(update={"fingerprint": "another", "rollout_lengths": [3]})
    two = on_policy(tmp_path, {}, plan={"num_ranks": 2})
    for recipe in (priced, two):
        with pytest.raises(SettingsError, match="measured on here with other models"):
            cost_of_rollouts(recipe, data, cost_model_of(recipe, data.renderer), foreign)


def test_a_selection_by_scores_costs_the_heads_once_more(tmp_path: Path) -> None:
    def head(kind: str) -> int:
        by = {"token_selection": {"kind": kind, "share": 0.5}}
        recipe = on_policy(tmp_path, {"trace_share": 0.25}, supervision=by)
        data = prepare_data(recipe)
        return cost_of_rollouts(recipe, data, cost_model_of(recipe, data.renderer)).prediction.flops.student_head

    # Forward over all positions, then forward and backward over half of them: (2 + 3) / 3.
    assert head("student_entropy") / head("random") == pytest.approx(5 / 3, rel=0.02)


@pytest.mark.slow
def test_a_calibration_draws_the_first_rollouts_of_the_run_for_their_lengths(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 24}, "temperature": 3.0}, steps=1)
    calibration = calibration_of(recipe, prepare_data(recipe), [recipe.cut], True)
    assert calibration is not None
    run(recipe)
    drawn = [line["tokens"] if line["ending"] == "stop" else None for line in lines(recipe.output)]
    assert calibration.rollout_lengths[: len(drawn)] == drawn and any(drawn)


def test_short_rollouts_alone_are_warned_of_in_plan_and_summary(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 8}})
    assert recipe.rollout is not None
    warning = recipe.rollout.short_warning(4)
    assert "beyond 8 tokens" in warning and warning in sentences(plan_recipe(recipe, prepare_data(recipe), []))
    result = RunResult(name="toy", label="rollout 8", seed=0, recipe=recipe, environment={})
    assert ("warning", warning) in run_summary(result).rows
    for remedy in ({"whole_share": 0.1}, {"trace_share": 0.5}, {"horizon": {"kind": "fixed", "tokens": 24}}):
        changed = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 8}, **remedy}).rollout
        assert changed is not None and changed.short_warning(4) == ""


def test_a_horizon_that_reaches_the_full_length_in_the_run_is_not_warned_of() -> None:
    stairs = {"kind": "stairs", "start": 8, "rise": 8, "every": 2}
    settings = validate(RolloutSettings, {"max_new_tokens": 24, "horizon": stairs}, "rollout")
    assert settings.short_warning(5) == ""
    assert "beyond 16 tokens" in settings.short_warning(4)
    shrinking = {"kind": "linear", "start": 16, "end": 8, "multiple": 1}
    settings = validate(RolloutSettings, {"max_new_tokens": 24, "horizon": shrinking}, "rollout")
    assert "beyond 16 tokens" in settings.short_warning(4)
