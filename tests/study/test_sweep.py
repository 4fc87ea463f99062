from pathlib import Path

import pytest

from leadspan.errors import RunError
from leadspan.study.demo import POLICIES, demo_recipes
from leadspan.study.sweep import run_trial, run_trials
from recipes import toy_recipe


@pytest.mark.slow
def test_trials_run_apart_and_a_failed_one_is_kept(tmp_path: Path) -> None:
    good = toy_recipe(tmp_path / "good", steps=2)
    bad = toy_recipe(tmp_path / "bad", steps=2, cut={"kind": "lead", "p": 0.01})
    said: list[str] = []
    results, failures = run_trials([bad, good], said.append)
    assert [run.label for run in results] == ["lead 0.7"]
    assert failures[0].label == "lead 0.01" and "leaves no weighted position" in failures[0].message
    assert "loading models" in said and any(text.startswith("training: step") for text in said)
    assert results[0].train is not None and results[0].train.peak_memory_bytes > 0


@pytest.mark.slow
def test_a_crash_is_told_with_its_place(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=2)
    recipe.output.parent.mkdir(exist_ok=True)
    recipe.output.write_text("a file where the run directory should be")
    with pytest.raises(RunError, match=r"toy: "):
        run_trial(recipe, lambda text: None)


def test_the_demo_compares_the_policies_it_says(tmp_path: Path) -> None:
    teacher, base, *students = demo_recipes(tmp_path, seed=0)
    assert (teacher.role, base.role) == ("teacher", "base")
    labels = ["full", "lead 0.75", "lead 0.5", "lead 0.25", "mix 0.9 lead 0.5", "tail 0.5"]
    assert [s.cut.label for s in students] == labels and len(POLICIES) == 6
    assert len({s.training.model_dump_json() for s in students}) == 1
    assert len({s.output for s in (teacher, base, *students)}) == 8
