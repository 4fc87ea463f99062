"""The two commands of the worlds' studies, on few problems; the second as far as `--dry-run` goes."""

from pathlib import Path

import pytest
import study_questions

from leadspan.cli import main
from leadspan.settings import load_settings
from leadspan.study.settings import Study
from leadspan.study.study import plan_study
from leadspan.study.trials import conditions, load_base
from leadspan.worlds.files import WorldFiles

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = {"derive_and_verify": "checked", "multiplication": "stated"}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["cpu", "gpu"])
@pytest.mark.parametrize("world", ["derive_and_verify", "multiplication"])
def test_a_world_and_the_plan_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: str, size: str
) -> None:
    monkeypatch.chdir(tmp_path)
    study, file = RECIPES / f"study_{world}_{size}.yaml", RECIPES / f"world_{world}_{size}.yaml"
    assert main(["study", str(study), "--dry-run"]) == 2
    assert f"run `leadspan world recipes/{file.name}` first" in capsys.readouterr().err
    sets = load_settings(WorldFiles, file).sets
    assert main(["world", str(file), *(f"sets.{name}.num_traces=4" for name in sets)]) == 0
    assert main(["study", str(study), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "0 of " in shown and "full" in shown and "mix 0.9 tail 0.5" in shown
    planned = {trial.recipe.name for trial in plan_study(load_settings(Study, study), study).trials}
    asked = {name for question in study_questions.QUESTIONS[TASKS[world]] for name in question.conditions}
    assert not {name for name in asked - planned if not name.endswith(", equal tokens")}
    first = next(iter(sets))
    assert (tmp_path / "runs" / "worlds" / f"{world}_{size}" / f"{first}.jsonl").read_text().count("\n") == 4


def test_the_study_of_horizons_varies_them_beside_cuts_at_equal_steps() -> None:
    file = RECIPES / "study_on_policy_cpu.yaml"
    study = load_settings(Study, file)
    recipes = {trial.recipe.name: trial.recipe for trial in conditions(study, load_base(study, file))}
    assert len(recipes) == 11
    labels = [recipe.rollout.label for recipe in recipes.values() if recipe.rollout]
    horizons = [label.removeprefix("rollout ").partition(",")[0] for label in labels]
    assert sorted(horizons) == ["16", "16-160", "200", "80", "80", "80", "80", "80"]
    steps = {name: recipe.training.steps for name, recipe in recipes.items()}
    assert {name for name, number in steps.items() if number != 200} == {"full, horizon 80, equal tokens"}
    cold = recipes["mix 0.9 lead 0.5, then horizon 80"].rollout
    assert cold is not None and cold.num_cold_steps == 100
