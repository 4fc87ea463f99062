"""What is damaged or missing is named, and made anew from what is whole."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from leadspan.data.prepare import prepare
from leadspan.errors import LeadspanError, ModelError, RunError
from leadspan.files import seal
from leadspan.inputs import load_renderer
from leadspan.models.loading import load_model
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import Pretrained
from leadspan.pipeline.run import run
from leadspan.recipe import Recipe
from leadspan.report.samples import read_metrics
from leadspan.results import damage, load_run
from leadspan.study.trials import without_places
from leadspan.training.checkpoints import check_best, checkpoint_to_resume, remove_old, step_directories
from recipes import toy_recipe, without_times
from studies import EVALUATION, toy_task

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", "handover.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished run with checkpoints of steps 4 and 6, the last one the best."""
    directory = tmp_path_factory.mktemp("finished")
    evaluation = {"tasks": [toy_task(directory)], **EVALUATION}
    recipe = toy_recipe(directory, num_validations=3, checkpoint_every=2, log_every=4, evaluation=evaluation)
    assert run(recipe).train.best_step == 6  # pyright: ignore[reportOptionalMemberAccess]  # it was trained
    return recipe


@pytest.fixture
def copied(finished: Recipe, tmp_path: Path) -> Recipe:
    shutil.copytree(finished.output, tmp_path / "run")
    return finished.model_copy(update={"output": tmp_path / "run"})


def flip(path: Path, share: float = 0.5) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def steps(recipe: Recipe) -> list[str]:
    return [path.name for path in step_directories(recipe.output)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE)
def test_a_checkpoint_with_a_damaged_or_missing_file_is_named_and_the_one_before_taken(
    copied: Recipe, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = copied.output / "checkpoints" / "checkpoint-6"
    assert set(STATE) < {path.name for path in last.iterdir()}
    whole = (last / name).read_bytes()
    flip(last / name)
    for text in (f"{last}: {name} has changed since it was written", f"{last}: {name} is missing"):
        taken = checkpoint_to_resume(copied.output, needs_best=True)
        assert taken is not None and taken.name == "checkpoint-4"
        assert text in caplog.text and "set aside as checkpoint-6.damaged" in caplog.text
        assert caplog.text.count("going on from step 4") == 1
        caplog.clear()
        last.with_name("checkpoint-6.damaged").rename(last)
        (last / name).unlink(missing_ok=True)
    (last / name).write_bytes(whole)
    assert checkpoint_to_resume(copied.output, needs_best=True) == last


def test_without_a_whole_checkpoint_training_starts_again(copied: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    for step in (4, 6):
        flip(copied.output / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    assert checkpoint_to_resume(copied.output, needs_best=True) is None
    assert "going on from the start: no checkpoint is whole" in caplog.text


def test_a_checkpoint_whose_best_step_is_gone_is_not_gone_on_from(
    copied: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    best, last = step_directories(copied.output)
    state = json.loads((last / "trainer_state.json").read_text())
    (last / "trainer_state.json").write_text(json.dumps(state | {"best_global_step": 4}))
    seal(last)
    check_best(best)
    flip(best / "model.safetensors")
    with pytest.raises(
        RunError, match=r"checkpoint-4: model\.safetensors has changed since it was written.*training\.keep=last"
    ):
        check_best(best)
    assert checkpoint_to_resume(copied.output, needs_best=False) == last
    assert "checkpoint-4: model.safetensors has changed since it was written" in caplog.text
    assert steps(copied) == ["checkpoint-6"]
    assert checkpoint_to_resume(copied.output, needs_best=True) is None
    assert "its best step is 4, and of checkpoint-4 it is gone" in caplog.text


def test_what_a_kill_left_half_written_or_half_removed_is_removed(copied: Recipe) -> None:
    checkpoints = copied.output / "checkpoints"
    for step in (2, 8):
        shutil.copytree(checkpoints / "checkpoint-4", checkpoints / f"checkpoint-{step}")
        (checkpoints / f"checkpoint-{step}" / "digests.json").unlink()
    taken = checkpoint_to_resume(copied.output, needs_best=True)
    assert taken is not None and taken.name == "checkpoint-6" and steps(copied) == ["checkpoint-4", "checkpoint-6"]


def test_the_oldest_checkpoints_are_told_by_their_step(copied: Recipe) -> None:
    checkpoints = copied.output / "checkpoints"
    for number, step in enumerate((10, 8, 6, 4, 2)):
        if step != 6:
            shutil.copytree(checkpoints / "checkpoint-6", checkpoints / f"checkpoint-{step}", dirs_exist_ok=True)
        os.utime(checkpoints / f"checkpoint-{step}", (1e9 + number, 1e9 + number))
    remove_old(copied.output, best_step=4)
    assert steps(copied) == ["checkpoint-4", "checkpoint-10"]
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-9")
    remove_old(copied.output, best_step=10)
    assert steps(copied) == ["checkpoint-9", "checkpoint-10"]


def test_every_damaged_checkpoint_is_named_and_where_nothing_is_said_none_is(
    copied: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    earlier, last = step_directories(copied.output)
    assert checkpoint_to_resume(copied.output, needs_best=True) == last and not caplog.text
    flip(earlier / "scheduler.pt")
    assert checkpoint_to_resume(copied.output, needs_best=True) == last
    assert "checkpoint-4: scheduler.pt has changed since it was written" in caplog.text
    assert "going on from step 6" in caplog.text and steps(copied) == ["checkpoint-6"]


def test_a_student_that_is_gone_is_damage_and_digests_that_are_no_json_are_named(copied: Recipe) -> None:
    assert damage(copied.output) is None
    shutil.rmtree(copied.output / "student")
    assert damage(copied.output) == "student is missing"
    (copied.output / "digests.json").write_text("[" * 200_000)
    assert damage(copied.output) == "digests.json is damaged"


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_earlier_checkpoint_ends_as_it_would_have(finished: Recipe, copied: Recipe) -> None:
    (copied.output / "run.json").unlink()
    flip(copied.output / "checkpoints" / "checkpoint-6" / "optimizer.pt")
    with (copied.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    flip(copied.output / "metrics.jsonl", 0.1)
    again = run(copied, resume=True)
    assert without_times(copied.output) == without_times(finished.output)
    assert student(copied) == student(finished)
    assert again.evaluations[0].correct == load_run(finished.output).evaluations[0].correct


@pytest.mark.slow
def test_a_run_killed_behind_its_training_has_no_line_twice(finished: Recipe, copied: Recipe) -> None:
    (copied.output / "run.json").unlink()
    run(copied, resume=True)
    assert (copied.output / "metrics.jsonl").read_bytes() == (finished.output / "metrics.jsonl").read_bytes()
    assert steps(copied) == steps(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("run.json", RunError),
        ("metrics.jsonl", RunError),
        ("student/model.safetensors", ModelError),
        ("student/config.json", ModelError),
        ("student/tokenizer.json", ModelError),
    ],
)
def test_a_damaged_file_of_a_finished_run_is_named_and_a_resume_makes_it_anew(
    finished: Recipe, copied: Recipe, name: str, error: type[LeadspanError]
) -> None:
    path = copied.output / name
    flip(path)
    with pytest.raises(error, match=rf"{path.name} has changed since it was written"):
        load_run(copied.output)
        read_metrics(copied.output / "metrics.jsonl")
        load_tokenizer(str(copied.output / "student"))
        load_model(Pretrained(path=str(copied.output / "student")), "auto")  # pyright: ignore[reportArgumentType]
    again = run(copied, resume=True)
    assert without_times(copied.output) == without_times(finished.output)
    assert student(copied) == student(finished)
    expected = load_run(finished.output).train
    assert again.train is not None and expected is not None
    handed_over = json.loads((copied.output / "checkpoints" / "checkpoint-6" / "handover.json").read_text())
    assert again.train.peak_memory_bytes >= handed_over["peak_memory_bytes"]
    assert again.train == expected.model_copy(update={"peak_memory_bytes": again.train.peak_memory_bytes})


@pytest.mark.parametrize("name", ["rows.arrow", "summary.json", "digests.json"])
def test_damaged_prepared_data_is_named_and_made_anew(
    copied: Recipe, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = copied.data.model_copy(update={"cache_dir": tmp_path / "cache"})
    renderer = load_renderer(copied)
    prepared = prepare(settings.train, renderer, settings)
    (kept,) = (tmp_path / "cache" / "traces").iterdir()
    before = prepared.rows.to_list()
    for spoil in (flip, Path.unlink):
        spoil(kept / name)
        assert prepare(settings.train, renderer, settings).rows.to_list() == before
        assert caplog.text.count(f"{kept}: ") == 1 and "; tokenised again" in caplog.text
        caplog.clear()
    assert list((tmp_path / "cache" / "traces").iterdir()) == [kept]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_disk_that_runs_full_is_one_error_and_training_goes_on_when_there_is_room(
    finished: Recipe, tmp_path: Path, share: float
) -> None:
    largest = (finished.output / "checkpoints" / "checkpoint-6" / "optimizer.pt").stat().st_size
    recipe = finished.model_copy(update={"output": tmp_path / "run"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot be written to its end .* GB are free there\); make room"):
            run(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(recipe, resume=True)
    assert student(recipe) == student(finished)
    assert without_times(recipe.output) == without_times(finished.output)


def student(recipe: Recipe) -> dict[str, bytes]:
    """Its files, but for the model card, which has times, and the digests, which have the card's."""
    paths = (recipe.output / "student").iterdir()
    return {path.name: path.read_bytes() for path in paths if path.name not in ("README.md", "digests.json")}


@pytest.mark.slow
def test_a_finished_run_keeps_no_checkpoints_where_it_is_asked_not_to(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=2, checkpoint_every=1, keep_checkpoints=False)
    result = run(recipe)
    assert not (recipe.output / "checkpoints").exists() and (recipe.student_directory / "config.json").exists()
    left = recipe.output / "checkpoints" / "checkpoint-1" / "optimizer.pt"  # of a run that was killed at its end
    left.parent.mkdir(parents=True)
    left.write_bytes(b"moments")
    keeping = recipe.model_copy(update={"training": recipe.training.model_copy(update={"keep_checkpoints": True})})
    assert run(keeping, resume=True) == result and left.exists()  # the setting is no part of what a run is
    assert run(recipe, resume=True) == result and not left.exists()
    assert without_places(recipe) == without_places(keeping)
