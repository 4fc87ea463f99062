import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

import sharded_gradients
from leadspan.data.packing import pack
from leadspan.errors import ModelError, RunError, SettingsError
from leadspan.inputs import prepare_data
from leadspan.pipeline import run
from leadspan.recipe import Recipe
from leadspan.teacher.live import live_targets
from leadspan.training.callbacks import MetricsFile
from leadspan.training.config import TrainingSettings
from leadspan.training.schedule import schedule
from recipes import metrics, toy_recipe, write_recipe

PLAIN_SGD = {"learning_rate": 1e-2, "max_grad_norm": 0, "schedule": "constant", "warmup_share": 0}


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in metrics(directory) if "loss" in line]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / "model.safetensors")


def distill(recipe: Path, *options: str, ranks: int = 1) -> subprocess.Popen[bytes]:
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, "leadspan", "distill", str(recipe), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def tokens_of_steps(recipe: Recipe) -> list[int]:
    lengths = prepare_data(recipe).examples.lengths
    plan = schedule(recipe.training, lengths, 1, recipe.seed)
    tokens = [sum(lengths[i] for i in batch) for batch in plan.plan]
    return [sum(tokens[i : i + plan.accumulation]) for i in range(0, len(tokens), plan.accumulation)]


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


def test_validation_is_on_full_sequences(tmp_path: Path) -> None:
    cut = run(toy_recipe(tmp_path / "a", steps=1, learning_rate=1e-12))
    full = run(toy_recipe(tmp_path / "b", steps=1, learning_rate=1e-12, cut={"kind": "full"}))
    assert cut.train and full.train
    assert cut.train.validation_loss == full.train.validation_loss
    assert cut.train.num_tokens < full.train.num_tokens


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


@pytest.mark.parametrize("per_batch", [1, 2, 8])
def test_accumulation_does_not_change_the_run(tmp_path: Path, per_batch: int) -> None:
    def batching(size: int) -> dict[str, object]:
        return {"batching": {"kind": "examples", "examples_per_step": 8, "examples_per_batch": size}}

    run(toy_recipe(tmp_path / "a", steps=3, **batching(4)))
    run(toy_recipe(tmp_path / "b", steps=3, **batching(per_batch)))
    assert losses(tmp_path / "a/run") == pytest.approx(losses(tmp_path / "b/run"), rel=1e-5)
    norms = [[line["grad_norm"] for line in metrics(tmp_path / name / "run") if "grad_norm" in line] for name in "ab"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_batches_by_tokens(tmp_path: Path) -> None:
    batching = {"kind": "tokens", "tokens_per_batch": 400, "batches_per_step": 2}
    result = run(toy_recipe(tmp_path, batching=batching, steps=None, epochs=2))
    assert result.train is not None
    assert result.train.num_tokens <= 400 * 2 * result.train.num_steps
    assert result.train.num_examples >= 2 * (result.cut.num_kept if result.cut else 0)


def test_adapters_are_merged_into_the_student(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, lora={"r": 4})
    result = run(recipe)
    assert result.train is not None and result.train.final_loss < result.train.first_loss
    assert (recipe.output / "adapter" / "adapter_model.safetensors").exists()
    merged = weights(recipe.output)
    assert not any("lora" in name for name in merged)
    start = weights_of_start(recipe)
    changed = {name for name in merged if not torch.equal(merged[name], start[name])}
    assert changed and all("proj" in name for name in changed)


def weights_of_start(recipe) -> dict[str, torch.Tensor]:
    from leadspan.models.loading import load_model

    return load_model(recipe.student, torch.float32).state_dict()


def test_gradient_checkpointing_gives_the_same_losses(tmp_path: Path) -> None:
    run(toy_recipe(tmp_path / "a", steps=3))
    run(toy_recipe(tmp_path / "b", steps=3, gradient_checkpointing=True))
    assert losses(tmp_path / "a/run") == pytest.approx(losses(tmp_path / "b/run"), rel=1e-6)


def test_one_cycle_peaks_after_its_warm_up(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=10, schedule="one_cycle", warmup_share=0.3)
    run(recipe)
    rates = [line["learning_rate"] for line in metrics(recipe.output) if "loss" in line]
    assert max(rates) == pytest.approx(recipe.training.learning_rate) and rates.index(max(rates)) in (2, 3)
    assert rates[-1] < 0.01 * max(rates)


def test_cross_entropy_only_needs_no_teacher(tmp_path: Path) -> None:
    result = run(toy_recipe(tmp_path, teacher=None, loss={"kl_weight": 0.0}, steps=2))
    assert result.train is not None and result.train.flops.teacher_body == 0


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from toys import tiny

    with pytest.raises(ModelError, match="teacher: its head has 20 rows"):
        run(toy_recipe(tmp_path, teacher=tiny(vocab=20).model_dump()))


def test_a_finished_or_started_run_is_not_overwritten(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=2)
    first = run(recipe)
    with pytest.raises(RunError, match="holds a finished run"):
        run(recipe)
    assert run(recipe, resume=True) == first
    with pytest.raises(RunError, match="started with another recipe"):
        run(recipe.model_copy(update={"seed": 9}), resume=True)
    (recipe.output / "run.json").unlink()
    with pytest.raises(RunError, match=r"checkpoints of an earlier run up to step 2; go on with --resume"):
        run(recipe)
    with pytest.raises(RunError, match="started with another recipe"):
        run(toy_recipe(tmp_path, steps=3), resume=True)


def test_ranks_must_divide_a_step() -> None:
    settings = TrainingSettings(steps=2)
    with pytest.raises(SettingsError, match=r"8 batches per step do not divide among 3 ranks"):
        schedule(settings, [5] * 10, num_ranks=3, seed=0)
    with pytest.raises(ValueError, match="no multiple"):
        TrainingSettings.model_validate(
            {"steps": 1, "batching": {"kind": "examples", "examples_per_step": 8, "examples_per_batch": 3}}
        )


def test_epochs_count_examples() -> None:
    plan = schedule(TrainingSettings(epochs=2, num_validations=2), [5] * 20, num_ranks=2, seed=0)
    assert (plan.num_steps, plan.accumulation, plan.validate_every) == (5, 4, 3)
    assert sorted(i for batch in plan.plan for i in batch) == sorted(2 * list(range(20)))


def kept_gradients(directory: Path, per_batch: int, ranks: int = 1) -> dict[str, torch.Tensor]:
    batching = {"kind": "examples", "examples_per_step": 8, "examples_per_batch": per_batch}
    path = write_recipe(toy_recipe(directory, batching=batching), directory / "recipe.yaml")
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*start, str(Path(__file__).with_name("keep_gradients.py")), str(path), str(directory / "gradients.pt")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
@pytest.mark.parametrize("head", ["root", "own"])
def test_sharded_student_and_teacher_have_the_gradient_of_one_process(tmp_path: Path, head: str) -> None:
    student, teacher = sharded_gradients.models()
    batch = pack(sharded_gradients.rows())
    student(batch=batch, targets=live_targets(teacher, batch))["loss_sum"].backward()
    path = tmp_path / "gradients.pt"
    script = str(Path(__file__).with_name("sharded_gradients.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, str(path), head], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sharded = torch.load(path)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        recipe = toy_recipe(tmp_path / name, steps=3)
        process = distill(write_recipe(recipe, tmp_path / f"{name}.yaml"), ranks=ranks)
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
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
def test_a_killed_run_resumes_with_the_same_losses(tmp_path: Path) -> None:
    changes = {"steps": 60, "num_validations": 2, "checkpoint_every": 5, "keep": "last", "log_every": 7}
    whole = toy_recipe(tmp_path / "whole", **changes)
    run(whole)
    recipe = toy_recipe(tmp_path / "killed", **changes)
    path = write_recipe(recipe, tmp_path / "killed.yaml")
    process = distill(path)
    deadline = time.monotonic() + 120
    while not (recipe.output / "checkpoints" / "checkpoint-15").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (recipe.output / "run.json").exists()
    output, _ = (resumed := distill(path, "--resume")).communicate()
    assert resumed.returncode == 0, output.decode()
    assert losses(recipe.output) == pytest.approx(losses(whole.output), rel=1e-4)
    steps = [[line["step"] for line in metrics(r.output) if "loss" in line] for r in (whole, recipe)]
    assert steps[0] == steps[1] == sorted({1, *range(7, 61, 7), *range(5, 61, 5)})
    for name, tensor in weights(whole.output).items():
        torch.testing.assert_close(weights(recipe.output)[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_passed_over(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=6, num_validations=3)
    run(recipe)
    (recipe.output / "run.json").unlink()
    checkpoints = recipe.output / "checkpoints"
    (checkpoints / "checkpoint-6" / "trainer_state.json").unlink()
    expected = losses(recipe.output)
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    result = run(recipe, resume=True)
    assert losses(recipe.output) == pytest.approx(expected, rel=1e-5)
    assert result.train is not None and list(result.train.validation_loss) == ["2", "4", "6"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_with_what_to_go_on_from(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=6, num_validations=3)
    run(recipe)
    (recipe.output / "run.json").unlink()
    expected = losses(recipe.output)
    last = recipe.output / "checkpoints" / "checkpoint-6"
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors"):
        whole = (last / name).read_bytes()
        (last / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RunError, match=rf"{name}: damaged \(.*remove .*checkpoint-6, and --resume goes on from"):
            run(recipe, resume=True)
        (last / name).write_bytes(whole)
    (last / "optimizer.pt").write_bytes(b"")
    with pytest.raises(RunError, match="and --resume goes on from step 5") as error:
        run(recipe, resume=True)
    assert str(error.value).count(str(last)) == 2
    shutil.rmtree(last)
    run(recipe, resume=True)
    assert losses(recipe.output) == pytest.approx(expected, rel=1e-5)


def test_infinite_values_are_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    arguments = TrainingArguments(output_dir=str(tmp_path))
    logs = {"loss": 1.5, "teacher_nll/cot": math.inf, "grad_norm": math.nan}
    MetricsFile(path).on_log(arguments, TrainerState(), TrainerControl(), logs)
    assert path.read_text() == '{"step": 0, "loss": 1.5, "teacher_nll/cot": null, "grad_norm": null}\n'
    with pytest.raises(RunError, match="the training loss is inf"):
        MetricsFile(path).on_log(arguments, TrainerState(), TrainerControl(), {"loss": math.inf})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 0, "loss": None}
