from pathlib import Path

import pytest

from leadspan.errors import SettingsError
from leadspan.inputs import prepare_data
from leadspan.pipeline.run import run
from leadspan.training.steps import plan_steps
from recipes import metrics, toy_recipe

GAP = {"kind": "gap", "share": 0.25}
UP = {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0.4, "end": 1.0, "num_stages": 3}


@pytest.mark.slow
def test_selection_trains_alike_however_a_step_is_split(tmp_path: Path) -> None:
    supervision = {"cot": 1, "answer": 2, "token_selection": GAP}
    plain = run(toy_recipe(tmp_path, steps=2, supervision={"cot": 1, "answer": 2}, output=str(tmp_path / "plain")))
    losses, results = [], []
    for size in (8, 2):
        batching = {"kind": "examples", "examples_per_step": 8, "examples_per_batch": size}
        output = str(tmp_path / f"run{size}")
        results.append(run(toy_recipe(tmp_path, steps=2, supervision=supervision, batching=batching, output=output)))
        losses.append([line["loss"] for line in metrics(Path(output)) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    chosen, whole = results[0].train, plain.train
    assert chosen is not None and whole is not None
    assert chosen.num_tokens == whole.num_tokens
    assert 0.2 < chosen.num_weighted_tokens / whole.num_weighted_tokens < 0.26
    head = whole.flops.student_head / 3 / whole.num_weighted_tokens  # of one position, forward
    scored = head * whole.num_weighted_tokens + 3 * head * chosen.num_weighted_tokens
    assert chosen.flops.student_head == pytest.approx(scored)
    assert chosen.first_loss > whole.first_loss  # the positions with the largest gap
    first = [next(iter(run_.train.validation_loss.values())) for run_ in (plain, results[0]) if run_.train]
    assert first[0] != first[1] and abs(first[0] / first[1] - 1) < 0.5  # over all positions in both


@pytest.mark.slow
def test_a_schedule_trains_stage_by_stage(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, cut=UP)
    data = prepare_data(recipe)
    plan = plan_steps(recipe.training, data.examples.lengths, 1, recipe.seed, data.examples.num_stages)
    result = run(recipe)
    assert result.label == "schedule lead 0.4-1" and result.train is not None
    assert result.train.num_tokens == sum(data.examples.lengths[i] for batch in plan.plan for i in batch)
    assert result.cut is not None and result.cut.num_examples == 3 * 32
    traces = len(data.examples.rows)
    for number, batch in enumerate(plan.plan):  # 6 steps of 2 batches: 4 batches a stage
        assert {i // traces for i in batch} == {number // 4}
    tokens = [sum(data.examples.lengths[i] for i in batch) for batch in plan.plan]
    assert sum(tokens[:4]) < sum(tokens[4:8]) < sum(tokens[8:])
    seen = [i % traces for batch in plan.plan[:8] for i in batch]
    assert sorted(seen) == list(range(32))  # one epoch over two stages, each trace once


def test_fewer_steps_than_stages_are_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, cut=UP, steps=2)
    data = prepare_data(recipe)
    with pytest.raises(SettingsError, match=r"cut.num_stages = 3: the run has only 2 steps"):
        plan_steps(recipe.training, data.examples.lengths, 1, 0, data.examples.num_stages)


def test_epochs_of_a_schedule_packed_by_tokens(tmp_path: Path) -> None:
    batching = {"kind": "tokens", "tokens_per_batch": 400}
    recipe = toy_recipe(tmp_path, cut=UP, steps=None, epochs=6, batching=batching)
    data = prepare_data(recipe)
    plan = plan_steps(recipe.training, data.examples.lengths, 1, 0, data.examples.num_stages)
    seen = len([i for batch in plan.plan for i in batch]) / len(data.examples.rows)
    assert abs(seen - 6) < 0.5
