from pathlib import Path

import pytest

from leadspan.errors import RunError
from leadspan.inputs import load_renderer
from leadspan.pipeline.directory import begin, check_evaluation_output, check_nothing_is_lost, identity_of
from leadspan.pipeline.run import run
from leadspan.settings import dump_yaml
from recipes import toy_recipe


def test_the_prompts_of_a_directory_count_by_the_split_that_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    directory.mkdir()
    for split in ("train", "test"):
        (directory / f"{split}.jsonl").write_text('{"problem": "1", "answer": "1"}\n')
    prompts = {"kind": "task", "task": {"path": str(directory), "grader": "exact"}}
    recipe = toy_recipe(tmp_path, rollout={"prompts": prompts}, loss={"kl_weight": 1})
    first = identity_of(recipe, load_renderer(recipe))
    (directory / "train.jsonl").write_text('{"problem": "2", "answer": "2"}\n')
    assert identity_of(recipe, load_renderer(recipe)) == first
    (directory / "test.jsonl").write_text('{"problem": "2", "answer": "2"}\n')
    changed = identity_of(recipe, load_renderer(recipe))
    assert changed.contents["rollout.prompts.task"] != first.contents["rollout.prompts.task"]


def test_files_that_no_run_has_written_are_not_replaced(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    path = recipe.output / "recipe.yaml"
    path.parent.mkdir()
    (recipe.output / "notes.txt").write_text("Ours.")
    check_nothing_is_lost(recipe.output)
    begin(recipe, None, is_resumed=False)
    check_nothing_is_lost(recipe.output)  # after a kill that left the recipe alone
    path.write_text(f"# Ours.\n{dump_yaml(recipe)}")
    with pytest.raises(RunError, match=r"recipe\.yaml: was written by no run, and would be replaced"):
        run(recipe)
    assert path.read_text().startswith("# Ours.")
    path.unlink()
    for name in ("metrics.jsonl", "rollouts.jsonl", "trackers.json", "digests.json", "student", "adapter", "profile"):
        (recipe.output / name).touch()
        with pytest.raises(RunError, match=f"{name}: was written by no run"):
            check_nothing_is_lost(recipe.output)
        (recipe.output / name).unlink()
    checkpoint = recipe.output / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    with pytest.raises(RunError, match="checkpoints: was written by no run"):
        run(recipe)
    assert checkpoint.exists()
    (recipe.output / "run.json").touch()
    check_nothing_is_lost(recipe.output)


def test_an_evaluation_is_not_written_into_a_run_or_over_its_digests(tmp_path: Path) -> None:
    check_evaluation_output(tmp_path / "absent")
    digests = tmp_path / "digests.json"
    digests.write_text('{"run.json": "0", "samples/gsm8k.jsonl": "0"}')
    check_evaluation_output(tmp_path)  # after a kill between its digests and its result
    for text in ('{"model.safetensors": "0"}', "ours", "[]"):
        digests.write_text(text)
        with pytest.raises(RunError, match=r"digests\.json: is of no evaluation"):
            check_evaluation_output(tmp_path)
    digests.unlink()
    (tmp_path / "identity.json").touch()
    with pytest.raises(RunError, match="it holds a run that is not finished"):
        check_evaluation_output(tmp_path)
