"""Going on with a run: what it must be again, and who may write."""

import errno
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import hold_process

from leadspan.errors import EvaluationError, ModelError, RunError
from leadspan.files import locked, seal
from leadspan.models.loading import load_model
from leadspan.pipeline.run import run
from leadspan.recipe import Recipe
from recipes import toy_recipe, write_recipe
from studies import EVALUATION, toy_task
from toys import TEMPLATE, VOCAB, character_tokenizer, tiny, write_traces

SRC = str(Path(__file__).parents[2] / "src")


def unfinished(directory: Path, **changes: object) -> Recipe:
    """A run that was interrupted behind its training."""
    recipe = toy_recipe(directory, steps=2, **changes)
    run(recipe)
    (recipe.output / "run.json").unlink()
    return recipe


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a directory with its content and the time of its last change."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_resume_with_changed_settings_or_inputs_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    load_model(tiny(seed=1), torch.float32).save_pretrained(weights)
    character_tokenizer().save_pretrained(weights)
    student = {"kind": "pretrained", "path": str(weights)}
    recipe = unfinished(tmp_path, student=student)
    before = state(recipe.output)

    def refused(changed: Recipe, match: str) -> None:
        with pytest.raises(RunError, match=match):
            run(changed, resume=True)
        assert state(recipe.output) == before

    refused(recipe.model_copy(update={"seed": 9}), r"\(seed was 0, is 9\); resume with what it was started with")
    refused(toy_recipe(tmp_path, steps=3, student=student), r"\(training\.steps was 2, is 3\)")
    traces = (tmp_path / "traces.jsonl").read_bytes()
    write_traces(tmp_path / "traces.jsonl", 39)
    refused(recipe, r"\(data\.train has another content\)")
    (tmp_path / "traces.jsonl").write_bytes(traces)
    whole = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(recipe, r"\(student has another content\)")
    (weights / "model.safetensors").write_bytes(whole)
    character_tokenizer(TEMPLATE.replace("add_generation_prompt", "(add_generation_prompt)")).save_pretrained(
        tmp_path / "tokenizer"
    )
    refused(recipe, r"\(data\.rendering\.chat_template has another content\)")
    character_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert run(recipe, resume=True).train is not None


@pytest.mark.slow
def test_a_run_whose_models_do_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """The tokenizer has more tokens than the student's head has rows, which is seen when the weights are there."""
    recipe = toy_recipe(tmp_path, student=tiny(vocab=VOCAB - 9).model_dump())
    with pytest.raises(ModelError, match=f"{VOCAB - 9}"):
        run(recipe)
    assert not recipe.output.exists()


@pytest.mark.slow
def test_the_recipe_that_began_a_run_can_go_on_after_another_one_was_refused(tmp_path: Path) -> None:
    recipe = unfinished(tmp_path)
    other = recipe.model_copy(update={"seed": 9})
    for resume in (False, True):
        with pytest.raises(RunError):
            run(other, resume=resume)
    assert run(recipe, resume=True).seed == 0


@pytest.mark.slow
def test_what_changes_no_training_forbids_no_resume(tmp_path: Path) -> None:
    recipe = unfinished(tmp_path / "before", evaluation={"tasks": [toy_task(tmp_path)], **EVALUATION})
    trained = (recipe.output / "student" / "model.safetensors").read_bytes()
    shutil.move(tmp_path / "before", tmp_path / "after")
    moved = toy_recipe(
        tmp_path / "after",
        steps=2,
        evaluation={"tasks": [toy_task(tmp_path)], "sampling": {"max_new_tokens": 5, "temperature": 0}},
        plan={"price_per_hour": 2.0},
        keep="last",
        num_workers=1,
    )
    result = run(moved, resume=True)
    assert result.evaluations[0].sampling["max_new_tokens"] == 5
    assert (moved.output / "student" / "model.safetensors").read_bytes() == trained
    assert [path.name for path in (moved.output / "samples.old-1").iterdir()] == ["toy.jsonl"]
    with pytest.raises(RunError, match=r"evaluated with other settings; `leadspan evaluate"):
        run(moved.model_copy(update={"evaluation": recipe.evaluation}), resume=True)


@pytest.mark.slow
def test_samples_of_both_kinds_are_kept_for_a_resume(tmp_path: Path) -> None:
    sampling = {"max_new_tokens": 9, "temperature": 0, "thinking_budget": 2}
    recipe = unfinished(tmp_path, evaluation={"tasks": [toy_task(tmp_path)], "sampling": sampling})
    names = {path.name for path in (recipe.output / "samples").iterdir()}
    assert names == {"toy.jsonl", "toy, made to answer.jsonl"}
    smaller = recipe.evaluation.sampling.model_copy(update={"batch_size": 2})  # as where memory ran out
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"sampling": smaller})})
    assert [result.task for result in run(recipe, resume=True).evaluations] == ["toy", "toy, made to answer"]
    assert not (recipe.output / "samples.old-1").exists()


@pytest.mark.slow
def test_a_kill_while_samples_are_rewritten_leaves_nothing_to_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = unfinished(tmp_path, evaluation={"tasks": [toy_task(tmp_path)], **EVALUATION})
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == "toy.jsonl":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        run(recipe, resume=True)
    assert len(run(recipe, resume=True).evaluations) == 1
    assert not (recipe.output / "samples.old-1").exists()


def test_a_refused_new_run_leaves_no_directory(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, data={"train": {"path": str(tmp_path / "none.jsonl")}})
    with pytest.raises(ValueError, match="no such file"):
        run(recipe.model_copy(update={"output": tmp_path / "deep" / "run"}))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "sampling, match",
    [
        ({"thinking_budget": 3, "max_new_tokens": 4}, "leave no token of sampling.max_new_tokens 4 for the answer"),
        ({"engine": {"kind": "vllm"}}, r"vllm is not installed; pip install 'leadspan\[vllm\]'"),
    ],
)
def test_sampling_that_no_model_could_be_asked_by_is_refused_before_training(
    sampling: dict[str, object], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else present(name))
    recipe = toy_recipe(tmp_path, evaluation={"tasks": [toy_task(tmp_path)], "sampling": sampling})
    with pytest.raises(EvaluationError, match=match):
        run(recipe)
    assert not recipe.output.exists()


@pytest.mark.slow
def test_a_run_directory_has_one_writer_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=1)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom leadspan.files import locked\n"
        f"with locked(Path({str(recipe.output)!r}) / '.lock', RuntimeError):\n"
        "    print('locked', flush=True)\n    time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": SRC}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    before = state(recipe.output)
    with pytest.raises(RunError, match=rf"another process \(id {holder.pid}\) writes this run"):
        run(recipe)
    assert state(recipe.output) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (recipe.output / ".lock").exists()
    run(recipe)
    assert not (recipe.output / ".lock").exists()


def test_a_lock_names_the_host_of_its_holder_and_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / ".lock", RunError):
        with pytest.raises(RunError, match=rf"^{os.getpid()}$"), locked(tmp_path / ".lock", RunError):
            pass
        monkeypatch.setattr(socket, "gethostname", lambda: "here")
        (tmp_path / ".lock").write_text("17 there")
        with pytest.raises(RunError, match=r"^17 on there$"), locked(tmp_path / ".lock", RunError):
            pass

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="No locks available") as caught, locked(tmp_path / ".lock", RunError):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")


@pytest.mark.slow
def test_a_damaged_identity_is_taken_from_the_last_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = unfinished(tmp_path, checkpoint_every=1)
    identity = recipe.output / "identity.json"
    whole = identity.read_text()
    for damaged in (whole.replace('"seed": 0', '"seed": 1'), whole[:99], None):
        identity.unlink() if damaged is None else identity.write_text(damaged)
        with pytest.raises(RunError, match=r"\(seed was 0, is 9\)"):
            run(recipe.model_copy(update={"seed": 9}), resume=True)
        assert identity.read_text() == damaged if damaged else not identity.exists()
        said = "not found" if damaged is None else "damaged"
        assert f"{identity}: {said}; that of checkpoint-2 is taken" in caplog.text
        caplog.clear()
        run(recipe, resume=True)
        assert identity.read_text() == whole
        (recipe.output / "run.json").unlink()
    for copied in (recipe.output / "checkpoints").glob("*/identity.json"):
        copied.unlink()
        seal(copied.parent)
    identity.write_text(whole.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match=r"identity\.json: damaged, so the recipe .* is unknown; give another output"):
        run(recipe, resume=True)


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    with locked(tmp_path / ".lock", RunError):
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    with locked(tmp_path / ".lock", RunError):
        pass
    os.write(write, b"x")
    os.waitpid(child, 0)


@pytest.mark.slow
def test_of_two_processes_one_is_refused_and_the_other_unharmed(tmp_path: Path) -> None:
    alone = toy_recipe(tmp_path / "alone", steps=20)
    run(alone)
    recipe = toy_recipe(tmp_path / "both", steps=20)
    path = write_recipe(recipe, tmp_path / "both.yaml")
    pids = [hold_process.start(tmp_path, ["distill", str(path)]) for _ in range(2)]
    said = {ended.code: ended.said for ended in [hold_process.wait(pid, tmp_path, 0) for pid in pids]}
    assert sorted(said) == [0, 2] and "writes this run; wait for it, or stop it" in said[2]
    assert len(metrics_lines(recipe)) == len(metrics_lines(alone))


def metrics_lines(recipe: Recipe) -> list[str]:
    return (recipe.output / "metrics.jsonl").read_text().splitlines()
