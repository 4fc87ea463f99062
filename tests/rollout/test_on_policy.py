"""Training on rollouts: what is learnt, recorded, gone on with, and refused."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.hold_process import run_ranks
from safetensors.torch import load_file

from leadspan.costs.flops import FlopsByPart
from leadspan.data.packing import pack
from leadspan.errors import DataError, RunError, SettingsError
from leadspan.inputs import prepare_data
from leadspan.losses.chunked import chunked_loss
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings, PolicyGradient
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_weight
from leadspan.models.loading import load_model
from leadspan.models.shapes import shape_of
from leadspan.pipeline.run import run
from leadspan.recipe import Recipe
from leadspan.results import RunResult, load_run
from leadspan.rollout.source import Rollouts
from leadspan.stages import checked_teacher, end_ids, training_inputs
from leadspan.teacher.targets import DenseTargets, SparseTargets, freeze, live_targets
from leadspan.training.result import StageCost
from recipes import toy_recipe, without_times, write_recipe
from toys import VOCAB, tiny, write_traces

ROLLOUT = {"max_new_tokens": 24, "horizon": {"kind": "linear", "start": 2, "end": 8, "multiple": 2}}
LOSS = {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}}


def on_policy(directory: Path, rollout: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    given = {"steps": 4, "checkpoint_every": 1, "keep": "last", "loss": LOSS, **changes}
    return toy_recipe(directory, rollout={**ROLLOUT, **(rollout or {})}, **given)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_records_every_rollout_and_counts_what_it_did(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"whole_share": 0.25, "trace_share": 0.25})
    result = run(recipe)
    assert result.label == "rollout 2-8, 0.25 whole, 0.25 traces, lead 0.7"
    drawn = lines(recipe.output)
    assert [line["step"] for line in drawn] == [step for step in range(4) for _ in range(6)]
    assert all(line["cap"] == (24 if line["whole"] else 2 * line["step"] + 2) for line in drawn)
    assert sum(line["whole"] for line in drawn) == 6
    for line in drawn:
        assert 1 <= line["tokens"] <= line["cap"] and line["weighted"] == line["tokens"]
        assert (line["ending"] == "stop") == line["text"].endswith(("<|im_end|>", "<|endoftext|>"))
        assert line["ending"] in ("stop", "budget" if line["whole"] else "horizon")
        assert line["ending"] == "stop" or line["tokens"] == line["cap"]
    assert result.train is not None and result.train.num_examples == 32
    assert result.train.num_tokens > sum(line["prompt_tokens"] + line["tokens"] for line in drawn)
    assert result.train.flops.rollout > 0 and result.train.step_seconds is not None
    assert 0 < result.train.step_seconds.rollout < result.train.seconds
    logged = [line["rollout/horizon"] for line in without_times(recipe.output) if "rollout/horizon" in line]
    assert logged == [2, 4, 6, 8]
    assert all(0 <= line["overlap"] <= 1 for line in drawn)
    assert all((line["end_overlap"] is None) == (line["tokens"] < 1.5 * (line["step"] + 1)) for line in drawn)
    shown = [sum(line["overlap"] for line in drawn[i : i + 6]) / 6 for i in range(0, 24, 6)]
    assert [line["rollout/overlap"] for line in without_times(recipe.output) if "loss" in line] == pytest.approx(shown)


@pytest.mark.slow
def test_a_token_beyond_a_gap_in_the_ids_is_learnt_drawn_and_ends_turns(tmp_path: Path) -> None:
    beyond = VOCAB + 10
    # Heads padded differently: what both have of the tokenizer is compared, which is more than its number of tokens.
    models = {"student": tiny(vocab=100, seed=1).model_dump(), "teacher": tiny(vocab=112, seed=2).model_dump()}
    recipe = on_policy(tmp_path, {"trace_share": 0.5, "whole_share": 1.0}, **models, cut={"kind": "full"})
    path = tmp_path / "tokenizer" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["<|im_end|>"] = values["added_tokens"][0]["id"] = beyond
    path.write_text(json.dumps(values))
    data = prepare_data(recipe)
    assert len(data.renderer.tokenizer) == VOCAB and data.renderer.num_ids == beyond + 1
    assert end_ids(recipe, data.renderer)[0] == beyond
    result = run(recipe)
    assert result.train is not None and 0 < result.train.final_loss < 10
    assert any(line["text"].endswith("<|im_end|>") for line in lines(recipe.output) if line["ending"] == "stop")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_the_same_rollouts_and_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    horizon = {"kind": "adaptive", "start": 4, "least": 2, "change": 2, "low": 0.1, "high": 0.15}
    rollout = {"whole_share": 0.2, "trace_share": 0.25, "cold_start": {"steps": 1}, "steps_per_draw": 2}
    recipe = on_policy(tmp_path, {**rollout, "horizon": horizon}, steps=5)
    [cold, later] = stages_of(run(recipe))
    whole = tmp_path / "whole"
    shutil.copytree(recipe.output, whole)
    (recipe.output / "run.json").unlink()
    shutil.rmtree(recipe.output / "student")
    shutil.rmtree(recipe.output / "checkpoints" / "checkpoint-5")  # what is left is amid two steps of one draw
    text = (whole / "rollouts.jsonl").read_text()
    for written in (text, text[: len(text) * 7 // 8], text + '{"step": 5, "prom'):  # killed later, within step 4, later
        (recipe.output / "rollouts.jsonl").write_text(written)
        again = tmp_path / "again"
        shutil.copytree(recipe.output, again)
        run(recipe, resume=True)
        assert (recipe.output / "rollouts.jsonl").read_text() == text
        assert without_times(recipe.output) == without_times(whole)
        for before, after in zip((cold, later), stages_of(load_run(recipe.output)), strict=True):
            assert after == before.model_copy(update={"seconds": after.seconds}) and after.seconds > 0
        found, expected = (load_file(d / "student" / "model.safetensors") for d in (recipe.output, whole))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        shutil.rmtree(recipe.output)
        again.rename(recipe.output)
    number = text.index('"tokens": ') + len('"tokens": ')  # of the first step: a count that no rule would refuse
    (recipe.output / "rollouts.jsonl").write_text(f"{text[:number]}9{text[number + 1 :]}")
    run(recipe, resume=True)
    assert (recipe.output / "rollouts.jsonl").read_text() == text
    said = "rollouts.jsonl, up to its step, has changed since it was written; set aside as checkpoint-4.damaged"
    assert said in caplog.text and "going on from the start: no checkpoint is whole" in caplog.text


def stages_of(result: RunResult) -> list[StageCost]:
    """The stages, which add up to the run."""
    assert result.train is not None
    for name in ("num_steps", "num_examples", "num_tokens", "num_weighted_tokens"):
        assert sum(getattr(stage, name) for stage in result.train.stages) == getattr(result.train, name)
    assert FlopsByPart.added(stage.flops for stage in result.train.stages) == result.train.flops
    assert sum(stage.seconds for stage in result.train.stages) == pytest.approx(result.train.seconds)
    return result.train.stages


@pytest.mark.slow
def test_a_cold_start_learns_traces_by_its_own_loss_then_rollouts_by_the_runs(tmp_path: Path) -> None:
    cold_start = {"steps": 2, "kl_weight": 0, "divergence": {"kind": "forward_kl"}}
    recipe = on_policy(tmp_path, {"cold_start": cold_start, "horizon": {"kind": "fixed", "tokens": 5}})
    result = run(recipe)
    assert result.label == "rollout 5, from step 2, lead 0.7"
    [cold, later] = stages_of(result)
    assert (cold.num_steps, cold.flops.rollout, cold.flops.teacher_body) == (2, 0, 0)
    assert later.flops.rollout > 0 and later.flops.teacher_body > 0
    assert {line["step"] for line in lines(recipe.output)} == {2, 3}
    data = prepare_data(recipe)
    inputs = training_inputs(recipe, data, checked_teacher(recipe))
    assert isinstance(inputs.steps, Rollouts)
    traces = [data.examples[i] for i in inputs.steps.inputs.course.step(0).traces]
    output = batch_loss(load_model(recipe.student, torch.float32), pack(traces), None, LossSettings(kl_weight=0))
    assert result.train is not None
    assert result.train.first_loss == pytest.approx(float(output.loss_sum / output.weight_sum), rel=1e-5)


@pytest.mark.slow
def test_a_cold_start_leaves_a_step_for_rollouts(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"cold_start": {"steps": 4}})
    with pytest.raises(SettingsError, match=r"cold_start\.steps = 4: the run has 4 steps"):
        run(recipe)


def made(recipe: Recipe) -> list[tuple[str, int, str]]:
    inputs = training_inputs(recipe, prepare_data(recipe), checked_teacher(recipe))
    assert inputs.steps is not None
    recipe.output.mkdir(parents=True, exist_ok=True)
    student = load_model(recipe.student, torch.float32)
    inputs.steps.prepare((shape_of(student), None), 4, False, False)
    for step in range(2):
        batches = inputs.steps.batches(step, student)
        inputs.steps.end_step([torch.ones(len(batch["positions"])) for batch in batches])
    return [(line["prompt"], line["sample"], line["text"]) for line in lines(recipe.output)]


@pytest.mark.slow
def test_what_is_drawn_does_not_depend_on_batches_and_is_another_in_every_sample_and_step(tmp_path: Path) -> None:
    texts = [
        made(on_policy(tmp_path, {"batch_size": size, "samples_per_prompt": 4}, output=str(tmp_path / f"run-{size}")))
        for size in (1, 3, 32)
    ]
    assert texts[0] == texts[1] == texts[2]
    by_prompt = [[text for _, _, text in group] for _, group in itertools.groupby(texts[0], key=lambda x: x[0])]
    assert all(len(set(samples)) > 1 for samples in by_prompt)


@pytest.mark.slow
def test_a_prompt_that_comes_twice_in_a_step_is_drawn_twice_and_each_up_to_its_cap(tmp_path: Path) -> None:
    write_traces(tmp_path / "few.jsonl", 5)
    data = {"train": {"path": str(tmp_path / "few.jsonl")}, "validation": {"kind": "none"}}
    rollout = {"whole_share": 0.5, "horizon": {"kind": "fixed", "tokens": 2}}
    recipe = on_policy(tmp_path, rollout, steps=2, data={**data, "cache_dir": str(tmp_path / "cache")})
    run(recipe)
    drawn = lines(recipe.output)
    assert len({line["seed"] for line in drawn}) == len(drawn) == 16
    assert {line["sample"] for line in drawn} == {0, 1}
    assert all(line["ending"] == "stop" or line["tokens"] == line["cap"] for line in drawn)


@pytest.mark.slow
def test_the_student_that_draws_is_the_one_that_learns(tmp_path: Path) -> None:
    """With one prompt and a learning rate that ruins the student, what it writes changes with every step."""
    recipe = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 24}}, learning_rate=1.0, warmup_share=0)
    frozen = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 24}}, output=str(tmp_path / "frozen"))
    run(recipe)
    assert made(frozen)[:8] == [(x["prompt"], x["sample"], x["text"]) for x in lines(recipe.output)[:8]]
    assert made(frozen)[8:] != [(x["prompt"], x["sample"], x["text"]) for x in lines(recipe.output)[8:16]]


@pytest.mark.slow
def test_a_horizon_of_one_token_trains_and_adapters_draw_under_checkpointing_too(tmp_path: Path) -> None:
    recipe = on_policy(
        tmp_path, {"horizon": {"kind": "fixed", "tokens": 1}}, steps=2, lora={"r": 2}, gradient_checkpointing=True
    )
    result = run(recipe)
    assert {line["tokens"] for line in lines(recipe.output)} == {1}
    assert result.train is not None and result.train.num_weighted_tokens == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}}},
            "not of every end of a turn: set tok",
        ),
        (
            {
                "loss": {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}, "stop": "tokens"},
                "rollout": {"trace_share": 0.5},
            },
            "learns from tokens that the student has just drawn: give a rollout, no traces, no store",
        ),
        (
            {
                "loss": {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}, "stop": "tokens"},
                "rollout": {"temperature": 0.7},
            },
            "are draws at temperature 1: set rollout.temperature: 1 and supervision.prompt: 0",
        ),
        (
            {
                "loss": {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}, "stop": "tokens"},
                "supervision": {"prompt": 0.1},
            },
            "where all weighted tokens are draws at temperature 1",
        ),
        (
            {"rollout": {"cold_start": {"steps": 1, "divergence": {"kind": "policy_gradient"}}}},
            "learns from tokens of the student, which traces are not",
        ),
        ({"rollout": {"steps_per_draw": 2}, "supervision": {"answer": 0}}, "weighed by all tokens drawn before them"),
        ({"loss": {"kl_weight": 0.5}}, "tokens that it drew itself, which says nothing about the teacher: set loss."),
        ({"targets": {"kind": "store", "path": "s"}, "rollout": {"steps_per_draw": 2}}, "set steps_per_draw: 1"),
        ({"batching": {"kind": "tokens"}}, "lengths of rollouts are not known before they are drawn: set kind: exam"),
        (
            {"rollout": {"samples_per_prompt": 3}},
            "examples_per_step 8 is not a multiple of rollout.samples_per_prompt 3",
        ),
        (
            {
                "rollout": {"trace_share": 0.5},
                "cut": {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0.5, "end": 1},
            },
            "cut.kind is schedule, and with rollouts the traces keep one cut",
        ),
    ],
)
def test_what_does_not_go_with_rollouts_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        on_policy(tmp_path, **changes)


@pytest.mark.slow
def test_a_prompt_that_fills_the_window_is_refused_before_training(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, student=tiny(seed=1, max_position_embeddings=36).model_dump())
    with pytest.raises(DataError, match=r"rollout\.prompts: \d+ of \d+ prompts leave no room .* window of 36 tokens"):
        run(recipe)
    assert not (recipe.output / "student").exists()


@pytest.mark.slow
def test_a_step_without_a_position_to_learn_is_told(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"horizon": {"kind": "fixed", "tokens": 2}}, supervision={"cot": 1, "answer": 0})
    with pytest.raises(RunError, match=r"step \d: no example has a position with a loss; give the sections"):
        run(recipe)


def test_rollouts_of_an_unchanged_student_have_the_ratio_1_whatever_pads_its_head(tmp_path: Path) -> None:
    models = {"student": tiny(vocab=VOCAB + 15, seed=1).model_dump(), "teacher": tiny(vocab=VOCAB + 15).model_dump()}
    recipe = on_policy(tmp_path, {"steps_per_draw": 2, "horizon": {"kind": "fixed", "tokens": 8}}, **models)
    inputs = training_inputs(recipe, prepare_data(recipe), checked_teacher(recipe))
    assert isinstance(inputs.steps, Rollouts)
    student, teacher = load_model(recipe.student, torch.float32), freeze(load_model(recipe.teacher, torch.float32))
    inputs.steps.prepare((shape_of(student), None), 4, False, False)
    inputs.steps.batches(0, student)
    for batch in inputs.steps.batches(1, student):
        targets, loss = live_targets(teacher, batch), LossSettings(kl_weight=1)
        with_ratios = batch_loss(student, batch, targets, loss).loss_sum
        del batch["drawn_log_probs"]
        assert float(with_ratios) == pytest.approx(float(batch_loss(student, batch, targets, loss).loss_sum), rel=1e-4)


def test_old_rollouts_have_the_log_probabilities_with_which_they_were_drawn(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, {"steps_per_draw": 3, "trace_share": 0.25})
    inputs = training_inputs(recipe, prepare_data(recipe), checked_teacher(recipe))
    assert isinstance(inputs.steps, Rollouts)
    student = load_model(recipe.student, torch.float32)
    inputs.steps.prepare((shape_of(student), None), 4, False, False)
    assert all("drawn_log_probs" not in batch for batch in inputs.steps.batches(0, student))
    for parameter in student.parameters():  # another student asks for the second step, and gets the first one's draws
        parameter.data.mul_(0)
    inputs.steps.restore(json.loads(json.dumps(inputs.steps.state()[0])))
    batches = inputs.steps.batches(1, student)
    fresh = load_model(recipe.student, torch.float32)
    for batch in batches:
        size, old = torch.zeros(len(batch["positions"])), batch["drawn_log_probs"]
        hidden = final_hidden_states(
            fresh, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
        )
        _, rows = chunked_loss(hidden, head_weight(fresh), None, batch["labels"], size, size, LossSettings())
        torch.testing.assert_close(old[~old.isnan()], -rows.cross_entropy[~old.isnan()], rtol=1e-3, atol=1e-4)
    known = [int((~batch["drawn_log_probs"].isnan()).sum()) for batch in batches]
    course = inputs.steps.inputs.course.step(1)
    assert 0 < sum(known) <= 4 * len(course.turns) and len(course.traces) == 2


@pytest.mark.slow
def test_policy_gradient_learns_of_rollouts_alone_and_validates_by_cross_entropy(tmp_path: Path) -> None:
    loss = {"kl_weight": 1, "divergence": {"kind": "policy_gradient"}, "stop": "tokens"}
    result = run(on_policy(tmp_path, steps=1, loss=loss, learning_rate=1e-9))
    assert result.cut is None  # the recipe's default cuts no rollout
    plain = toy_recipe(
        tmp_path / "plain", steps=1, keep="last", loss={"kl_weight": 0}, teacher=None, learning_rate=1e-9
    )
    by_tokens = run(plain)
    assert result.train is not None and by_tokens.train is not None
    assert result.train.validation_loss["1"] == pytest.approx(by_tokens.train.validation_loss["1"], rel=1e-5)


def categorical(seed: int = 0, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, size, generator=generator, dtype=torch.float64) for _ in range(2))


def exact_gradient(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    size = student.shape[1]
    logits, eye = student.clone().requires_grad_(), torch.eye(size, dtype=torch.float64)
    targets, one = DenseTargets(teacher, eye), torch.ones(1, dtype=torch.float64)
    loss = LossSettings.model_validate({"kl_weight": 1, "divergence": {"kind": kind}, "compiled": False})
    value, _ = chunked_loss(logits, eye, targets, torch.zeros(1, dtype=torch.long), 0 * one, one, loss)
    return torch.autograd.grad(value, logits)[0][0]


def test_the_exact_gradient_is_the_mean_of_the_policy_gradients_of_many_samples() -> None:
    student, teacher = categorical()
    log_p, log_q = student[0].log_softmax(-1), teacher[0].log_softmax(-1)
    drawn = torch.multinomial(log_p.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    eye, one = torch.eye(6, dtype=torch.float64), torch.ones(len(drawn), dtype=torch.float64)
    logits = student.expand(len(drawn), -1).clone().requires_grad_()
    loss = LossSettings(kl_weight=1, divergence=PolicyGradient(), compiled=False)
    dense = DenseTargets(teacher.expand(len(drawn), -1), eye)
    total, rows = chunked_loss(logits, eye, dense, drawn, 0 * one, one, loss)
    estimates = torch.autograd.grad(total, logits)[0]
    assert float(total) / len(drawn) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=0.01)
    torch.testing.assert_close(rows.divergence, (log_p - log_q)[drawn])
    ids, certain = drawn[:, None], log_q[drawn][:, None]
    sparse = SparseTargets(ids, certain, {1.0: 0 * one}, label_log_probs=log_q[drawn])
    torch.testing.assert_close(chunked_loss(logits, eye, sparse, drawn, 0 * one, one, loss)[0], total)
    error = estimates.std(0) / len(drawn) ** 0.5
    exact = exact_gradient(student, teacher, "reverse_kl")
    assert ((estimates.mean(0) - exact).abs() < 4 * error).all()
    assert (exact.abs() > 10 * error).any()


def test_differentiating_one_sample_estimates_trains_something_else() -> None:
    """In expectation k1 has no gradient at all, and k3 that of the forward divergence."""
    student, teacher = categorical()
    logits = student[0].clone().requires_grad_()
    log_p, log_q = logits.log_softmax(-1), teacher[0].log_softmax(-1)
    weights, ratio = log_p.exp().detach(), log_q - log_p
    k1, k3 = -ratio, ratio.exp() - 1 - ratio
    of_k1, of_k3 = (torch.autograd.grad((weights * k).sum(), logits, retain_graph=True)[0] for k in (k1, k3))
    torch.testing.assert_close(of_k1, torch.zeros_like(of_k1))
    torch.testing.assert_close(of_k3, exact_gradient(student, teacher, "forward_kl"))
    assert (of_k3 - exact_gradient(student, teacher, "reverse_kl")).abs().max() > 0.05


@pytest.mark.slow
def test_two_processes_draw_and_learn_as_one(tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        recipe = on_policy(tmp_path / name, {"trace_share": 0.25, "whole_share": 0.2})
        path = write_recipe(recipe, tmp_path / f"{name}.yaml")
        for ended in run_ranks(tmp_path, ["distill", str(path)], ranks):
            assert ended.code == 0, ended.said
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    assert (one / "rollouts.jsonl").read_text() == (two / "rollouts.jsonl").read_text()
    losses = [[line["loss"] for line in without_times(run) if "loss" in line] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
