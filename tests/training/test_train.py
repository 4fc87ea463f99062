import gzip
import json
import math
import re
import signal
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from benchmarks import hold_process
from benchmarks.hold_process import Moment, run_ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

import counted_traffic
import keep_gradients
import sharded_gradients
import sharded_run
from leadspan.costs.memory import ActivationBytes, BatchSize, MemoryModel, Sharding, traffic
from leadspan.data.packing import pack
from leadspan.errors import ModelError, RunError, SettingsError
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.models.shapes import shape_of
from leadspan.pipeline.run import run
from leadspan.recipe import Recipe
from leadspan.results import load_run
from leadspan.settings import validate
from leadspan.stages import end_ids
from leadspan.status import STATUS_SECONDS, StatusHandler, report_detail, report_status
from leadspan.teacher.source import NoTeacher
from leadspan.teacher.targets import live_targets
from leadspan.training.callbacks import EnergyMeter, MetricsFile, ProgressCallback
from leadspan.training.settings import Lora, TrainingSettings
from leadspan.training.steps import plan_steps
from leadspan.training.train import with_adapters
from leadspan.training.trainer import DistillationTrainer
from recipes import metrics, toy_recipe, write_recipe
from toys import tiny

PLAIN_SGD = {"learning_rate": 1e-2, "max_grad_norm": 0, "schedule": "constant", "warmup_share": 0}


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in metrics(directory) if "loss" in line]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / "model.safetensors")


def tokens_of_steps(recipe: Recipe) -> list[int]:
    lengths = prepare_data(recipe).examples.lengths
    plan = plan_steps(recipe.training, lengths, 1, recipe.seed)
    tokens = [sum(lengths[i] for i in batch) for batch in plan.plan]
    return [sum(tokens[i : i + plan.accumulation]) for i in range(0, len(tokens), plan.accumulation)]


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_it_says(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=11, num_validations=3)
    result = run(recipe)
    assert result.train is not None and result.cut is not None
    assert result.train.final_loss < 0.8 * result.train.first_loss
    assert list(result.train.validation_loss) == ["4", "8", "11"]
    assert result.train.best_step == result.train.saved_step == 11
    assert result.train.num_examples == 88
    assert result.train.flops.total > 0 and result.train.seconds > 0
    lines = metrics(recipe.output)
    speeds = [line["speed/tokens_per_second"] for line in lines if "loss" in line]
    assert len(speeds) == 11 and min(speeds) > 0 and "speed/mfu" not in lines[0]  # no peak is known
    lasted = [tokens / speed for tokens, speed in zip(tokens_of_steps(recipe), speeds, strict=True)]
    assert sum(lasted) == pytest.approx(result.train.seconds)
    assert lasted[0] == pytest.approx(result.train.first_step_seconds)
    assert {"loss", "divergence/cot", "cross_entropy/cot", "learning_rate", "grad_norm"} <= set(lines[0])
    student = AutoModelForCausalLM.from_pretrained(recipe.output / "student")
    assert student.generation_config.eos_token_id == [0]
    assert (recipe.output / "student" / "chat_template.jinja").exists()


@pytest.mark.slow
def test_validation_is_on_full_sequences(tmp_path: Path) -> None:
    shown: list[str] = []
    with StatusHandler(shown.append):
        cut = run(toy_recipe(tmp_path / "a", steps=1, learning_rate=1e-12))
    assert any(re.fullmatch(r"validating: (\d+)/\1 batches", line) for line in shown)
    full = run(toy_recipe(tmp_path / "b", steps=1, learning_rate=1e-12, cut={"kind": "full"}))
    assert cut.train and full.train
    assert cut.train.validation_loss == full.train.validation_loss
    assert cut.train.num_tokens < full.train.num_tokens


@pytest.mark.slow
def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    # a learning rate that explodes after the warm-up makes the first validation the best one
    changes = {
        "steps": 8,
        "num_validations": 4,
        "learning_rate": 1.0,
        "schedule": "linear",
        "warmup_share": 0.9,
    }
    best = run(toy_recipe(tmp_path / "best", **changes))
    last = run(toy_recipe(tmp_path / "last", keep="last", **changes))
    assert best.train and last.train
    found = best.train.validation_loss
    assert best.train.saved_step == int(min(found, key=lambda step: found[step])) < last.train.saved_step == 8
    assert not torch.equal(
        weights(tmp_path / "best/run")["model.norm.weight"],
        weights(tmp_path / "last/run")["model.norm.weight"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("per_batch", [1, 2, 8])
def test_accumulation_does_not_change_the_run(tmp_path: Path, per_batch: int) -> None:
    def batching(size: int) -> dict[str, object]:
        return {"batching": {"kind": "examples", "examples_per_step": 8, "examples_per_batch": size}}

    run(toy_recipe(tmp_path / "a", steps=3, **batching(4)))
    run(toy_recipe(tmp_path / "b", steps=3, **batching(per_batch)))
    assert losses(tmp_path / "a/run") == pytest.approx(losses(tmp_path / "b/run"), rel=1e-5)
    norms = [[line["grad_norm"] for line in metrics(tmp_path / name / "run") if "grad_norm" in line] for name in "ab"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.slow
def test_batches_by_tokens(tmp_path: Path) -> None:
    batching = {"kind": "tokens", "tokens_per_batch": 400, "batches_per_step": 2}
    result = run(toy_recipe(tmp_path, batching=batching, steps=None, epochs=2))
    assert result.train is not None
    assert result.train.num_tokens <= 400 * 2 * result.train.num_steps
    assert result.train.num_examples >= 2 * (result.cut.num_kept if result.cut else 0)


@pytest.mark.slow
def test_adapters_are_merged_into_the_student(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, lora={"r": 4})
    result = run(recipe)
    assert result.train is not None and result.train.final_loss < result.train.first_loss
    assert {path.name for path in (recipe.output / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "digests.json"
    }  # fmt: skip
    merged = weights(recipe.output)
    assert not any("lora" in name for name in merged)
    start = weights_of_start(recipe)
    changed = {name for name in merged if not torch.equal(merged[name], start[name])}
    assert changed and all("proj" in name for name in changed)


def weights_of_start(recipe) -> dict[str, torch.Tensor]:
    from leadspan.models.loading import load_model

    return load_model(recipe.student, torch.float32).state_dict()


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_losses(tmp_path: Path) -> None:
    run(toy_recipe(tmp_path / "a", steps=3))
    run(toy_recipe(tmp_path / "b", steps=3, gradient_checkpointing=True))
    assert losses(tmp_path / "a/run") == pytest.approx(losses(tmp_path / "b/run"), rel=1e-6)


@pytest.mark.slow
def test_one_cycle_peaks_after_its_warm_up(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=10, schedule="one_cycle", warmup_share=0.3)
    run(recipe)
    rates = [line["learning_rate"] for line in metrics(recipe.output) if "loss" in line]
    assert max(rates) == pytest.approx(recipe.training.learning_rate) and rates.index(max(rates)) in (2, 3)
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize(
    ("num_steps", "warmup_steps", "expected"),
    [
        pytest.param(4, 0, [1.0, 0.75, 0.25, 0.0], id="no warm-up"),
        pytest.param(4, 1, [1.0, 0.75, 0.25, 0.0], id="of one step"),
        pytest.param(3, 3, [0.04, 1.0, 0.0], id="of all steps"),
        pytest.param(5, 3, [0.04, 0.52, 1.0, 0.5, 0.0], id="of some steps"),
    ],
)
def test_one_cycle_has_any_warm_up(tmp_path: Path, num_steps: int, warmup_steps: int, expected: list[float]) -> None:
    """Cosine from a 25th of the rate up to the rate, and down to a 10,000th of that 25th."""
    arguments = TrainingArguments(str(tmp_path), learning_rate=1.0, warmup_steps=warmup_steps, use_cpu=True)
    nothing: Any = []
    trainer = DistillationTrainer(torch.nn.Linear(1, 1), NoTeacher(), nothing, None, [], [], arguments, one_cycle=True)
    trainer.create_optimizer_and_scheduler(num_steps)
    optimizer, scheduler = cast(torch.optim.Optimizer, trainer.optimizer), trainer.lr_scheduler
    assert scheduler is not None
    rates = []
    for _ in range(num_steps):
        rates += scheduler.get_last_lr()[:1]
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-5)


def test_a_profile_has_the_steps_asked_for_and_the_ten_dearest_operations(tmp_path: Path) -> None:
    run(toy_recipe(tmp_path, steps=3, profile={"skip": 1, "steps": 1}, teacher=None, loss={"kl_weight": 0}))
    directory = tmp_path / "run" / "profile"
    _, _, *rows = (directory / "parts-0.md").read_text().splitlines()
    seconds = [float(row.split("|")[2]) for row in rows]
    assert len(rows) == 10 and seconds == sorted(seconds, reverse=True) and seconds[0] > 0
    with gzip.open(directory / "trace-0.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("student_forward") == 2  # one step of two micro-batches


def test_a_profile_behind_the_last_step_is_refused() -> None:
    with pytest.raises(SettingsError, match="none of the 4 steps"):
        validate(TrainingSettings, {"steps": 4, "profile": {"skip": 4}}, "training")


@pytest.mark.slow
def test_cross_entropy_only_needs_no_teacher(tmp_path: Path) -> None:
    result = run(toy_recipe(tmp_path, teacher=None, loss={"kl_weight": 0.0}, steps=2))
    assert result.train is not None and result.train.flops.teacher_body == 0


@pytest.mark.slow
def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from toys import tiny

    with pytest.raises(ModelError, match="teacher: its head has 20 rows"):
        run(toy_recipe(tmp_path, teacher=tiny(vocab=20).model_dump()))


@pytest.mark.slow
def test_a_finished_or_started_run_is_not_overwritten(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=2)
    first = run(recipe)
    with pytest.raises(RunError, match="holds a finished run"):
        run(recipe)
    assert run(recipe, resume=True) == first
    with pytest.raises(RunError, match="started with another recipe"):
        run(recipe.model_copy(update={"seed": 9}), resume=True)
    (recipe.output / "run.json").unlink()
    with pytest.raises(RunError, match=r"checkpoints of an earlier run up to step 2; continue with --resume"):
        run(recipe)
    with pytest.raises(RunError, match="started with another recipe"):
        run(toy_recipe(tmp_path, steps=3), resume=True)


def test_ranks_must_divide_a_step() -> None:
    settings = TrainingSettings(steps=2)
    with pytest.raises(SettingsError, match=r"8 batches per step do not divide among 3 ranks"):
        plan_steps(settings, [5] * 10, num_ranks=3, seed=0)
    with pytest.raises(ValueError, match="is not a multiple"):
        TrainingSettings.model_validate(
            {"steps": 1, "batching": {"kind": "examples", "examples_per_step": 8, "examples_per_batch": 3}}
        )


@pytest.mark.parametrize(
    ("number", "steps"),
    [(1, {10}), (3, {4, 7, 10}), (4, {3, 5, 8, 10}), (6, {2, 4, 5, 7, 9, 10}), (30, {*range(1, 11)})],
)
def test_validations_are_as_many_as_are_set_and_evenly_spaced(number: int, steps: set[int]) -> None:
    settings = TrainingSettings(steps=10, num_validations=number)
    assert plan_steps(settings, [5] * 20, num_ranks=1, seed=0).validations == steps


def test_epochs_count_examples() -> None:
    assert plan_steps(TrainingSettings(epochs=1e-12), [5] * 20, num_ranks=2, seed=0).num_steps == 1
    plan = plan_steps(TrainingSettings(epochs=2, num_validations=2), [5] * 20, num_ranks=2, seed=0)
    assert (plan.num_steps, plan.accumulation, plan.validations) == (5, 4, {3, 5})
    assert sorted(i for batch in plan.plan for i in batch) == sorted(2 * list(range(20)))


def kept_gradients(directory: Path, per_batch: int, ranks: int = 1) -> dict[str, torch.Tensor]:
    batching = {"kind": "examples", "examples_per_step": 8, "examples_per_batch": per_batch}
    recipe = toy_recipe(directory, batching=batching)
    for ended in run_ranks(directory, partial(keep_gradients.main, recipe, directory / "gradients.pt"), ranks):
        assert ended.code == 0, ended.said
    return torch.load(directory / "gradients.pt")


@pytest.mark.slow
def test_the_gradient_is_the_same_however_a_step_is_split(tmp_path: Path) -> None:
    whole = kept_gradients(tmp_path / "1x8", per_batch=8)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
    for name, per_batch, ranks in (("2x4", 4, 1), ("8x1", 1, 1), ("2 ranks", 2, 2)):
        split = kept_gradients(tmp_path / name, per_batch, ranks)
        assert split.keys() == whole.keys()
        for key, gradient in whole.items():
            torch.testing.assert_close(split[key], gradient, rtol=1e-3, atol=1e-6, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize(("head", "attention"), [("root", "packed"), ("own", "packed"), ("root", "own")])
def test_sharded_student_and_teacher_have_the_gradient_of_one_process(
    tmp_path: Path, head: str, attention: str
) -> None:
    student, teacher = sharded_gradients.models(attention)
    batch = pack([example for rows in sharded_gradients.rows() for example in rows])
    student(batch=batch, targets=live_targets(teacher, batch))["loss_sum"].backward()
    path = tmp_path / "gradients.pt"
    for ended in run_ranks(tmp_path, partial(sharded_gradients.main, path, head, attention), 2):
        assert ended.code == 0, ended.said
    sharded = torch.load(path)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_ranks_send_the_bytes_that_are_planned(tmp_path: Path, sharding: Sharding) -> None:
    path = tmp_path / "sent.json"
    for ended in run_ranks(tmp_path, partial(counted_traffic.main, path, sharding), 2):
        assert ended.code == 0, ended.said
    sent = json.loads(path.read_text())
    student, teacher = map(shape_of, sharded_gradients.models("packed"))
    activations = ActivationBytes(0, 0)
    memory = MemoryModel(student, teacher, activations, activations, False, 1, num_ranks=2, sharding=sharding)
    planned = traffic(memory, teacher, "beside", [BatchSize(0, 0)])
    if sharding == "ddp":
        assert (sent, planned.total) == ({"allreduce": planned.gradients}, planned.gradients)
    else:
        # Layers whose weights do not divide are padded.
        assert sent["reducescatter"] == pytest.approx(planned.gradients, rel=0.01)
        assert sent["allgather"] == pytest.approx(planned.weights + planned.teacher, rel=0.01)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        recipe = toy_recipe(tmp_path / name, steps=3)
        path = write_recipe(recipe, tmp_path / f"{name}.yaml")
        for ended in run_ranks(tmp_path, ["distill", str(path)], ranks):
            assert ended.code == 0, ended.said
    one, two = ([line for line in metrics(tmp_path / n / "run") if "loss" in line] for n in ("one", "two"))
    for key in ("loss", "grad_norm", "divergence/cot", "cross_entropy/cot"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], rel=1e-4), key
    validation = [
        [line["eval_loss"] for line in metrics(tmp_path / n / "run") if "eval_loss" in line] for n in ("one", "two")
    ]
    assert validation[0] == pytest.approx(validation[1], rel=1e-5)
    first, second = weights(tmp_path / "one/run"), weights(tmp_path / "two/run")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"lora": {"r": 4}}, {"precision": "bfloat16"}])
def test_two_sharded_ranks_write_the_student_of_one_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, sharded = (toy_recipe(tmp_path / name, steps=2, **changes) for name in ("whole", "sharded"))
    run(whole)
    path = write_recipe(sharded, tmp_path / "sharded.yaml")
    for ended in run_ranks(tmp_path, partial(sharded_run.main, "distill", str(path)), 2):
        assert ended.code == 0, ended.said
    first, second = (metrics(recipe.output)[0] for recipe in (whole, sharded))
    for key in ("loss", "student_entropy/cot", "cross_entropy/cot"):  # sums that bfloat16 would round by up to 0.4 %
        assert second[key] == pytest.approx(first[key], rel=5e-4), key
    # Adam's step is the learning rate however small a gradient is, and FSDP reduces gradients in bfloat16.
    tolerance = 2 * 2e-2 if "precision" in changes else 1e-5
    written = weights(sharded.output)
    for name, tensor in weights(whole.output).items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-3, atol=tolerance)
    AutoModelForCausalLM.from_pretrained(sharded.student_directory)


@pytest.mark.slow
def test_a_teacher_is_sharded_like_its_student(tmp_path: Path) -> None:
    for ended in run_ranks(tmp_path, partial(sharded_run.check_teacher, tiny(hidden=48, seed=2)), 2):
        assert ended.code == 0, ended.said


@pytest.mark.slow
def test_what_the_first_rank_refuses_is_one_error_and_no_traceback_of_the_others(tmp_path: Path) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "recipe.yaml")
    first, *others = run_ranks(tmp_path, ["distill", str(path)], 3)
    assert "2 batches per step do not divide among 3 ranks" in first.said and first.code == 2
    for other in others:
        assert other.code == 2 and other.is_clean and "another rank has ended; its message says why" in other.said


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_losses(tmp_path: Path) -> None:
    changes = {"steps": 60, "num_validations": 2, "checkpoint_every": 5, "keep": "last", "log_every": 7}
    whole = toy_recipe(tmp_path / "whole", **changes)
    run(whole)
    recipe = toy_recipe(tmp_path / "killed", **changes)
    path = write_recipe(recipe, tmp_path / "killed.yaml")
    state = "open killed/run/checkpoints/checkpoint-#/trainer_state.json"
    ended = hold_process.run(tmp_path, ["distill", str(path)], Moment(before=(state, 4)))
    assert ended.code == -signal.SIGKILL, ended.said
    assert not (recipe.output / "run.json").exists()
    resumed = hold_process.run(tmp_path, ["distill", str(path), "--resume"])
    assert resumed.code == 0, resumed.said
    trained = load_run(recipe.output).train  # by a process that held no run before, whose memory must grow
    assert trained is not None and trained.peak_memory_bytes > 0
    assert losses(recipe.output) == pytest.approx(losses(whole.output), rel=1e-4)
    steps = [[line["step"] for line in metrics(r.output) if "loss" in line] for r in (whole, recipe)]
    assert steps[0] == steps[1] == sorted({1, *range(7, 61, 7), *range(5, 61, 5)})
    for name, tensor in weights(whole.output).items():
        torch.testing.assert_close(weights(recipe.output)[name], tensor, rtol=1e-3, atol=1e-5)


def test_infinite_values_are_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    arguments = TrainingArguments(output_dir=str(tmp_path))
    logs = {"loss": 1.5, "teacher_nll/cot": math.inf, "grad_norm": math.nan}
    MetricsFile(path).on_log(arguments, TrainerState(), TrainerControl(), logs)
    assert path.read_text() == '{"step": 0, "grad_norm": null, "loss": 1.5, "teacher_nll/cot": null}\n'
    with pytest.raises(RunError, match="the training loss is inf"):
        MetricsFile(path).on_log(arguments, TrainerState(), TrainerControl(), {"loss": math.inf})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 0, "loss": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "message"),
    [({"kind": "share", "share": 0.2}, "step 1: the validation loss is nan"), ({"kind": "none"}, "step 1 has left ")],
)
def test_a_last_step_after_which_the_student_is_no_longer_finite_writes_none(
    tmp_path: Path, validation: dict[str, Any], message: str
) -> None:
    data = {**toy_recipe(tmp_path).data.model_dump(mode="json"), "validation": validation}
    recipe = toy_recipe(tmp_path, data=data, steps=1, learning_rate=1e38, warmup_share=0)
    with pytest.raises(RunError, match=message):
        run(recipe)
    assert not (recipe.output / "student").exists()


def test_energy_is_unknown_where_a_process_of_the_run_could_not_measure_it() -> None:
    def total_after(*readings: int | None) -> float | None:
        """Joules after some processes, each with its reading in millijoules, or without a counter."""
        meter = EnergyMeter()
        for number, reading in enumerate(readings):
            meter = EnergyMeter(**meter.state()["args"]) if number else meter
            meter._read = None if reading is None else lambda value=reading: value
        return meter.total

    assert total_after(3000, 5000) == 8.0
    assert total_after(None, 5000) is None and total_after(3000, None) is None
    assert total_after(3000, None, 5000) is None


def test_what_the_first_step_reports_is_shown_as_training() -> None:
    shown: list[str] = []
    arguments: Any = None  # the callback does not look at them
    with StatusHandler(shown.append):
        report_status("loading models")
        ProgressCallback().on_train_begin(arguments, TrainerState(), TrainerControl())
        report_detail("2/2 rollouts")
    assert shown == ["loading models", "training", "training; 2/2 rollouts"]


def test_no_loss_is_shown_before_one_is_known() -> None:
    shown: list[str] = []
    callback, state, control = ProgressCallback(), TrainerState(global_step=1, max_steps=9), TrainerControl()
    arguments: Any = None  # the callback does not look at them
    with StatusHandler(shown.append):
        callback.on_step_begin(arguments, state, control)
        callback.on_step_end(arguments, state, control)
        callback.on_log(arguments, state, control, {"loss": 0.25, "speed/tokens_per_second": 1234.4})
        time.sleep(1.1 * STATUS_SECONDS)
        callback.on_step_end(arguments, state, control)
    assert shown == ["training: 1/9 steps", "training: 1/9 steps, loss 0.2500, 1,234 tokens/s"]


@pytest.mark.slow
def test_ends_of_student_teacher_and_data_are_one_outcome(tmp_path: Path) -> None:
    ends = {"student": tiny(seed=1, eos_token_id=2).model_dump(), "teacher": tiny(seed=2, eos_token_id=9).model_dump()}
    divergences = {}
    for stop in ("tokens", "event"):
        recipe = toy_recipe(tmp_path, steps=1, loss={"stop": stop}, output=str(tmp_path / stop), **ends)
        data = prepare_data(recipe)
        assert end_ids(recipe, data.renderer) == (0, 2, 9)
        run(recipe)
        divergences[stop] = next(
            line["eval_divergence/answer"] for line in metrics(recipe.output) if "eval_loss" in line
        )
    assert divergences["event"] < divergences["tokens"]


def test_adapters_are_saved_without_a_look_at_the_hub(tmp_path: Path) -> None:
    student = load_model(tiny(), torch.float32)
    student.name_or_path = str(tmp_path / "a directory that has a GGUF file alone")
    model = with_adapters(student, Lora(r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("modules", "message"),
    [(["q_proj", "gate"], r"target_modules: the model has no module 'gate'"), ("[", "unterminated character set")],
)
def test_adapters_on_modules_that_the_model_does_not_have_are_refused(modules: Any, message: str) -> None:
    with pytest.raises(ModelError, match=rf"training\.lora.*{message}"):
        with_adapters(load_model(tiny(), torch.float32), Lora(target_modules=modules))


def test_the_config_of_adapters_is_written_alike_by_every_process(tmp_path: Path) -> None:
    model = with_adapters(load_model(tiny(), torch.float32), Lora(r=2))
    model.save_pretrained(str(tmp_path))
    modules = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) == 14 and modules == sorted(modules)
