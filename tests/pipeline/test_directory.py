from pathlib import Path

import pytest

from leadspan.errors import RunError
from leadspan.inputs import load_renderer
from leadspan.pipeline.directory import begin, identity_of
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


def test_a_recipe_that_no_run_has_written_is_not_replaced(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    path = recipe.output / "recipe.yaml"
    path.parent.mkdir()
    begin(recipe, None, is_resumed=False)
    begin(recipe, None, is_resumed=True)  # after a kill that left the recipe alone
    path.write_text(f"# Ours.\n{dump_yaml(recipe)}")
    with pytest.raises(RunError, match=r"recipe\.yaml: was written by no run, and would be replaced"):
        begin(recipe, None, is_resumed=False)
    assert path.read_text().startswith("# Ours.")
    (recipe.output / "run.json").touch()
    begin(recipe, None, is_resumed=False)
