import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from leadspan.cli import main
from leadspan.costs.timing import Calibration
from leadspan.data.truncation import Full, Lead
from leadspan.errors import SettingsError
from leadspan.pipeline import prepare_data, run
from leadspan.study.plan_tables import plan_tables, sentences
from leadspan.study.planning import BreakPoint, Plan, calibration_of, parse_policy, plan_recipe
from leadspan.study.predicted import compared
from recipes import toy_recipe, write_recipe

POLICIES = (Full(), Lead(p=0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def planned(folder: Path, machine: dict[str, object], **more: object) -> Plan:
    recipe = toy_recipe(folder, plan=machine, **more)
    return plan_recipe(recipe, prepare_data(recipe), POLICIES)


def text_of(plan: Plan) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    for part in plan_tables(plan):
        console.print(part)
    return console.export_text()


def test_the_recipes_own_policy_comes_first_and_shares_are_of_full(folder: Path) -> None:
    plan = planned(folder, {"device": "l4", "utilisation": 0.5, "price_per_hour": 3.6})
    assert [(row.label, row.is_recipes) for row in plan.rows] == [
        ("lead 0.7", True),
        ("full", False),
        ("lead 0.5", False),
    ]
    own, full, half = (row.prediction for row in plan.rows)
    assert half.num_tokens < own.num_tokens < full.num_tokens and half.flops.total < own.flops.total
    assert full.seconds == pytest.approx(full.flops.total / (121e12 * 0.5))
    assert full.money == pytest.approx(full.seconds * 3.6 / 3600)
    assert plan.rows[0].fitting == plan.rows[0].cut.num_kept  # so small that all fit
    shown = text_of(plan)
    assert "lead 0.7 *" in shown and "Time: 50% of the peak of 1 x NVIDIA L4" in shown
    for row in plan.rows:
        assert sum(row.flops_saving.shares.values()) == pytest.approx(
            1 - row.flops_saving.all_on / row.flops_saving.naive
        )


def test_ranks_divide_the_time_and_not_the_bill(folder: Path) -> None:
    machine = {"device": "l4", "utilisation": 0.5, "price_per_hour": 1}
    one, two = (planned(folder, machine | {"num_ranks": n}).rows[1].prediction for n in (1, 2))
    assert one.seconds == pytest.approx(2 * (two.seconds or 0)) and one.money == pytest.approx(two.money)
    assert one.flops == two.flops


def test_a_price_of_zero_is_a_price(folder: Path) -> None:
    plan = planned(folder, {"device": "l4", "utilisation": 0.5, "price_per_hour": 0})
    assert {row.prediction.money for row in plan.rows} == {0.0}
    assert "$0.00" in text_of(plan)


def test_without_a_device_there_is_no_time_and_it_is_said(folder: Path) -> None:
    plan = planned(folder, {"price_per_hour": 2})
    assert plan.rows[0].prediction.seconds is None and plan.rows[0].prediction.money is None
    assert any(line.startswith("No time: run with --calibrate") for line in sentences(plan))


def test_a_device_too_small_for_one_example_is_told_with_a_remedy(folder: Path) -> None:
    tiny_device = {"device": {"name": "a watch", "peak_tflops": 0.001, "memory_gb": 0.0001}}
    plan = planned(folder, tiny_device)
    assert {row.fitting for row in plan.rows} == {0}
    shown = text_of(plan)
    assert "none fits" in shown
    assert "full does not fit a watch" in shown and "weights, gradients and optimiser alone exceed it" in shown


def test_a_device_too_small_for_the_batch_names_the_batch_that_fits(folder: Path) -> None:
    needed = planned(folder, {}).rows[1].prediction.memory.total
    plan = planned(folder, {"device": {"peak_tflops": 1, "memory_gb": 0.8 * needed / 1e9}})
    full = plan.rows[1]
    assert full.fitting is not None and 0 < full.fitting < 4
    assert any(f"examples_per_batch: {full.fitting} fits" in line for line in sentences(plan))


def test_adapters_are_counted_without_weights(folder: Path) -> None:
    own = planned(folder, {}, lora={"r": 2}).rows[0].prediction
    full = planned(folder, {}).rows[0].prediction
    assert own.memory.optimizer < full.memory.optimizer / 4 and own.flops.student_body < full.flops.student_body


def test_an_audits_break_point_is_shown_where_there_is_one(folder: Path) -> None:
    recipe = toy_recipe(folder)
    data = prepare_data(recipe)
    assert "LSP*" not in text_of(plan_recipe(recipe, data, POLICIES))
    plan = plan_recipe(recipe, data, POLICIES, break_point=BreakPoint(0.65, 0.6, 0.7))
    assert "Predicted break point LSP*: 0.65 [0.60, 0.70]; expected to hurt: lead 0.5." in text_of(plan)


def test_policies_from_the_command_line() -> None:
    assert parse_policy("{kind: lead, p: 0.3}") == Lead(p=0.3)
    with pytest.raises(SettingsError, match=r"--cut \{kind: lead, p: 3\}"):
        parse_policy("{kind: lead, p: 3}")


@pytest.mark.slow
def test_calibrated_rates_are_kept_used_and_refused_for_other_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = tmp_path / "rates.json"
    recipe = toy_recipe(tmp_path, plan={"calibration": str(rates)})
    with pytest.raises(SettingsError, match="cannot be read"):
        calibration_of(recipe, prepare_data(recipe), POLICIES, False, lambda text: None)
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    arguments = ["plan", str(path), "--calibrate", "--cut", "{kind: full}", "--json", str(tmp_path / "plan.json")]
    assert main(arguments) == 0
    assert "Time: calibration of 5 steps on 1 x cpu" in capsys.readouterr().out
    stored = Calibration.model_validate_json(rates.read_text())
    assert stored.num_steps == 5 and stored.rates and stored.memory_factor + stored.memory_offset > 0
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert rows[0]["prediction"]["seconds"] > 0 and rows[0]["prediction"]["flops"]["total"] > 0
    assert main(["plan", str(path), "training.gradient_checkpointing=true"]) == 2
    assert "measured on 1 x cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_its_prediction_beside_what_it_measured(tmp_path: Path) -> None:
    result = run(toy_recipe(tmp_path, plan={"device": {"peak_tflops": 1, "memory_gb": 1}, "utilisation": 0.01}))
    assert result.prediction is not None and result.train is not None and result.train.step_seconds is not None
    assert result.prediction.flops == result.train.flops
    assert result.prediction.num_tokens == result.train.num_tokens
    assert {cost.error_text for cost in compared(result.prediction, result.train)[:2]} == {"+0 %"}
    parts = result.train.step_seconds
    assert min(parts.model_dump().values()) > 0
    inside = parts.teacher + parts.student_forward + parts.backward + parts.optimizer
    assert inside == pytest.approx(result.train.seconds)
    work = result.train.flops.total - result.train.flops.recomputation
    assert result.train.mfu == pytest.approx(work / result.train.seconds / 1e12)
    assert result.train.energy_joules is None
