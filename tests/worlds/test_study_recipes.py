"""The two commands of the worlds' studies, on few problems; the second as far as `--dry-run` goes."""

from pathlib import Path

import pytest
import study_questions

from leadspan.cli import main
from leadspan.settings import load_settings
from leadspan.study.config import Study
from leadspan.study.study import plan_study
from leadspan.worlds.config import WorldFiles

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = {"derive_and_verify": "checked", "multiplication": "stated"}


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
