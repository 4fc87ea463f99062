from pathlib import Path

import pytest

from leadspan.errors import SettingsError
from leadspan.recipe import Recipe
from leadspan.settings import apply_overrides, dump_yaml, load_settings, parse_yaml, validate
from leadspan.study.config import Study
from leadspan.study.trials import conditions, load_base, load_before
from leadspan.worlds.config import WorldFiles

FOUND = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
RECIPES = [path for path in FOUND if not path.stem.startswith(("study_", "world_"))]
STUDIES = [path for path in FOUND if path.stem.startswith("study_")]
WORLDS = [path for path in FOUND if path.stem.startswith("world_")]
SMALL = """
name: small
output: runs/small
tokenizer: somewhere
data: {train: {path: traces.jsonl}}
student: {kind: random_init, config: {model_type: qwen3}}
teacher: {kind: pretrained, path: teacher}
training: {epochs: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_settings(Recipe, path)
    (tmp_path / "again.yaml").write_text(dump_yaml(recipe))
    assert load_settings(Recipe, tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_is_valid_with_all_its_conditions(path: Path, tmp_path: Path) -> None:
    study = load_settings(Study, path)
    (tmp_path / "again.yaml").write_text(dump_yaml(study))
    assert load_settings(Study, tmp_path / "again.yaml") == study
    assert len(conditions(study, load_base(study, path))) > 1
    assert len(load_before(study, path)) == len(study.before)


@pytest.mark.parametrize("path", WORLDS, ids=lambda p: p.stem)
def test_every_world_is_valid(path: Path, tmp_path: Path) -> None:
    world = load_settings(WorldFiles, path)
    (tmp_path / "again.yaml").write_text(dump_yaml(world))
    assert load_settings(WorldFiles, tmp_path / "again.yaml") == world


def test_there_are_recipes() -> None:
    worlds = {f"{name}_{size}" for name in ("derive_and_verify", "multiplication") for size in ("cpu", "gpu")}
    assert worlds <= {path.stem.removeprefix("study_") for path in STUDIES}
    assert worlds == {path.stem.removeprefix("world_") for path in WORLDS}
    assert {"qwen3_r1_traces", "paper_bespoke_stratos"} <= {path.stem for path in RECIPES}


def test_the_paper_recipe_has_the_papers_figures() -> None:
    recipe = load_settings(Recipe, next(path for path in RECIPES if path.stem == "paper_bespoke_stratos"))
    training, data = recipe.training, recipe.data
    assert (data.num_train, data.num_validation, data.max_tokens) == (8000, 1000, 4096)
    assert (training.learning_rate, training.weight_decay, training.warmup_share, training.epochs) == (
        4e-6,
        0.05,
        0.1,
        2,
    )
    assert (recipe.loss.kl_weight, recipe.loss.temperature, recipe.cut.label) == (0.5, 1.0, "lead 0.5")
    sampling = recipe.evaluation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.samples_per_problem) == (
        0.6, 0.95, 32768, 64,
    )  # fmt: skip


def test_overrides_are_yaml_and_reach_everywhere(recipe: Path) -> None:
    changed = load_settings(
        Recipe,
        recipe,
        ["training.learning_rate=1e-5", "cut={kind: tail, p: 0.3}", "data.train.limit=7", "loss.temperature=2"],
    )
    assert changed.training.learning_rate == 1e-5
    assert changed.cut.label == "tail 0.3"
    assert changed.data.train.limit == 7 and changed.loss.temperature == 2.0


def test_every_fault_is_told_at_once(recipe: Path) -> None:
    wrong = ["training.learning_rte=1", "cut={kind: lead, p: 7}", "supervision.cot=-1", "data.max_tokens=x", "seed=1.5"]
    with pytest.raises(SettingsError) as caught:
        load_settings(Recipe, recipe, wrong)
    message = str(caught.value)
    assert "5 settings to mend" in message
    assert "training.learning_rte: unknown key; did you mean 'learning_rate'?" in message
    assert "cut.lead.p = 7: Input should be less than or equal to 1" in message
    assert "supervision.cot = -1" in message and "data.max_tokens = 'x'" in message and "seed = 1.5" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["training"], "write it as key.sub=value", id="no equals"),
        pytest.param(["name.x=1"], "has no keys to set", id="below a value"),
        pytest.param(
            ["loss.kl_weight=0"], "kl_weight is 0 with a teacher: give a teacher or targets", id="teacher without use"
        ),
        pytest.param(["teacher=null"], "kl_weight is 0.5 with no teacher", id="no teacher"),
        pytest.param(["tokenizer=null"], "tokenizer is missing", id="no tokenizer"),
        pytest.param(["training.steps=3"], "give exactly one of epochs and steps", id="two lengths"),
        pytest.param(
            ["supervision.token_selection={kind: gap, share: 0.2}", "teacher=null", "loss.kl_weight=0"],
            "token_selection.kind is gap with no teacher",
            id="a gap to nobody",
        ),
        pytest.param(["supervision={prompt: 0, cot: 0, answer: 0}"], "nothing would be learnt", id="no weight"),
    ],
)
def test_combinations_are_refused(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(Recipe, recipe, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: 1\na: 2", "duplicate key", id="duplicate key"),
        pytest.param("a: [1", "not valid YAML", id="broken"),
        pytest.param("- 1", "is a mapping of settings, this is list", id="list"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(Recipe, tmp_path / "r.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        load_settings(Recipe, tmp_path / "none.yaml")


def test_yaml_1_2() -> None:
    assert parse_yaml("[1e-5, no, 010]", "here") == [1e-5, "no", 10]


def test_overrides_index_lists() -> None:
    values = {"tasks": [{"name": "a"}, {"name": "b"}]}
    apply_overrides(values, ["tasks.1.name=c", "tasks.0.limit=3"])
    assert values == {"tasks": [{"name": "a", "limit": 3}, {"name": "c"}]}
    with pytest.raises(SettingsError, match="must be a list index from 0 to 1"):
        apply_overrides(values, ["tasks.2.name=c"])


def test_the_recipe_of_the_readme_is_valid() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    values = parse_yaml(text.split("```yaml\n")[1].split("```")[0], "README.md")
    assert validate(Recipe, values, "README.md").cut.label == "mix 0.9 lead 0.5"
