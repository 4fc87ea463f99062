from pathlib import Path

from leadspan.inputs import load_renderer
from leadspan.pipeline.directory import identity_of
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
