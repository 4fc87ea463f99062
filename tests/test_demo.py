from pathlib import Path

import pytest

from leadspan.cli.starting import run_demo, write_recipes
from leadspan.errors import RunError
from leadspan.recipe import load_recipe
from leadspan.results import load_run
from leadspan.settings import load_settings
from leadspan.study.settings import Study
from leadspan.worlds.files import WorldFiles, build_tokenizer

SIZES = {"num_traces": 200, "num_problems": 20, "teacher_steps": 2, "student_steps": 2, "max_new_tokens": 20}


@pytest.mark.slow
def test_a_short_demo_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "demo"
    record = run_demo(directory, seed=1, **SIZES)
    shown = " ".join(capsys.readouterr().out.split())
    assert [trial.name for trial in record.trials[:2]] == ["teacher", "base"]
    assert "of its answers, and" in shown and "ran into the cap on new tokens" in shown  # as two steps teach nobody
    runs = {trial.name: load_run(directory / trial.directory) for trial in record.trials[2:]}
    labels = ["full", "lead 0.75", "lead 0.5", "lead 0.25", "mix 0.75 lead 0.5", "tail 0.5"]
    assert list(runs) == labels and all(label in shown for label in labels)
    num_tokens = {label: run.train.num_tokens for label, run in runs.items() if run.train is not None}
    shares = {label: number / num_tokens["full"] for label, number in num_tokens.items()}
    assert shares["lead 0.5"] == pytest.approx(0.5, abs=0.01) and shares["lead 0.25"] == pytest.approx(0.25, abs=0.01)
    assert shares["tail 0.5"] == pytest.approx(0.5, abs=0.01)
    mixed = runs["mix 0.75 lead 0.5"].cut
    assert mixed is not None
    whole = 1 - mixed.lost_answer / mixed.num_examples  # of 200 traces, drawn with a probability of a quarter
    assert 0.15 < whole < 0.35
    assert mixed.tokens_after / mixed.tokens_before == pytest.approx(0.5 + 0.5 * whole, abs=0.01)
    assert (directory / "report.html").stat().st_size > 400_000
    with pytest.raises(RunError, match="it is not empty, and holds no demo of this seed"):
        run_demo(directory, seed=2, **SIZES)
    assert run_demo(directory, seed=1, **SIZES) == record  # nothing is left to run


@pytest.mark.parametrize("name", ["demo", "my demo: #1, {a}", 'a "quoted" one', "back\\slash"])
def test_the_recipes_of_the_demo_name_its_directory(name: str, tmp_path: Path) -> None:
    study_file = write_recipes(tmp_path / name, seed=3)
    study = load_settings(Study, study_file, [])
    assert study.output == tmp_path / name and study.seeds == [3]
    recipes = {file: load_recipe(study_file.with_name(f"{file}.yaml"), []) for file in ("teacher", "base", "student")}
    assert [recipe.seed for recipe in recipes.values()] == [3, 4, 0]
    world = load_settings(WorldFiles, study_file.with_name("world.yaml"), [])
    assert {Path(recipe.data.train.path).parent for recipe in recipes.values()} == {world.output}
    assert recipes["teacher"].student.config["vocab_size"] == len(build_tokenizer())


def test_a_demo_whose_recipes_were_being_written_goes_on(tmp_path: Path) -> None:
    study_file = write_recipes(tmp_path, seed=0)
    texts = {path: path.read_text() for path in study_file.parent.iterdir()}
    study_file.unlink()
    study_file.with_name(".study.yaml.7.tmp").write_text("name: a st")  # as a kill leaves it
    with pytest.raises(RunError, match="holds no demo of this seed"):
        write_recipes(tmp_path, seed=1)
    assert write_recipes(tmp_path, seed=0) == study_file
    assert {path: path.read_text() for path in texts} == texts
    study_file.unlink()
    (tmp_path / "world").mkdir()
    with pytest.raises(RunError, match="it is not empty"):
        write_recipes(tmp_path, seed=0)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match="it is not empty"):
        write_recipes(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
