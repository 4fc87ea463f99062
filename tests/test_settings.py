import re
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from leadspan.cli import parse
from leadspan.errors import SettingsError
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.faults import models_in
from leadspan.other_tools import OTHER_NAMES
from leadspan.recipe import Recipe, load_recipe
from leadspan.settings import apply_overrides, dump_yaml, json_schema, load_settings, validate
from leadspan.study.settings import Study
from leadspan.study.trials import conditions, load_base
from leadspan.worlds.files import WorldFiles
from leadspan.yaml_text import parse_yaml

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


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_is_valid_with_all_its_conditions(path: Path, tmp_path: Path) -> None:
    study = load_settings(Study, path)
    (tmp_path / "again.yaml").write_text(dump_yaml(study))
    assert load_settings(Study, tmp_path / "again.yaml") == study
    assert len(conditions(study, load_base(study, path))) > 1
    for before in study.before:
        load_recipe(path.parent / before.recipe, before.settings)


@pytest.mark.parametrize("path", WORLDS, ids=lambda p: p.stem)
def test_every_world_is_valid(path: Path, tmp_path: Path) -> None:
    world = load_settings(WorldFiles, path)
    (tmp_path / "again.yaml").write_text(dump_yaml(world))
    assert load_settings(WorldFiles, tmp_path / "again.yaml") == world


def test_a_path_below_the_users_home_is_there(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    changes = ["output=~/runs/a", "tokenizer=~/tokenizer", "data.cache_dir=~/cache", "data.train.path=~/a.jsonl"]
    read = load_settings(Recipe, recipe, changes)
    paths = read.output, read.tokenizer, read.data.cache_dir, read.data.train.path
    assert list(map(str, paths)) == [str(tmp_path / name) for name in ("runs/a", "tokenizer", "cache", "a.jsonl")]
    options = parse(["report", "~/runs", "--output=~/page.html"])
    assert (options.runs, options.output) == ([tmp_path / "runs"], tmp_path / "page.html")


def test_every_path_of_a_study_and_every_option_may_begin_with_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"name": "s", "output": "~/s", "recipe": "~/r.yaml", "before": ["~/a.yaml", {"recipe": "~/b.yaml"}]}
    study = validate(Study, values | {"needs": {"~/teacher": "make it"}, "store": {"path": "~"}}, "study")
    paths = [study.output, study.recipe, *(before.recipe for before in study.before), *study.needs]
    assert paths == [tmp_path / name for name in ("s", "r.yaml", "a.yaml", "b.yaml", "teacher")]
    assert study.store is not None and study.store.path == tmp_path
    evaluated = parse(["evaluate", "~/run", "gsm8k", "~/tasks", "--output=~/out"])
    assert (evaluated.model, evaluated.tasks) == (f"{tmp_path}/run", ["gsm8k", f"{tmp_path}/tasks"])
    audited = parse(["audit", "~/r.yaml", "--tokenizer=~/t", "--task=~/a", "--task=~/b"])
    assert (audited.data, audited.tokenizer, audited.tasks) == (
        *(f"{tmp_path}/{name}" for name in ("r.yaml", "t")),
        [f"{tmp_path}/a", f"{tmp_path}/b"],
    )
    asked = parse(["sample", "~/run", "~/ is home", "--against=~/other"])
    assert (asked.model, asked.prompts, asked.against) == (f"{tmp_path}/run", ["~/ is home"], [f"{tmp_path}/other"])
    begun = parse(["init", "~/traces", "--student=~/s", "--teacher=~/t", "--task=~/p"])
    assert [begun.traces, begun.student, begun.teacher, begun.task] == [
        f"{tmp_path}/{name}" for name in ("traces", "s", "t", "p")
    ]
    assert parse(["preview", "r.yaml", "--model=~/run"]).model == f"{tmp_path}/run"
    assert parse(["report", "~nobody-at-all/x"]).runs == [Path("~nobody-at-all/x")]  # as a shell has it


def test_there_are_recipes() -> None:
    worlds = {f"{name}_{size}" for name in ("derive_and_verify", "multiplication") for size in ("cpu", "gpu")}
    studies = {path.stem.removeprefix("study_") for path in STUDIES}
    assert worlds | {"pretrained_cpu", "pretrained_gpu"} <= studies
    words = {"word_problems_cpu", "word_problems_gpu"}
    assert {path.stem.removeprefix("world_") for path in WORLDS} == worlds | words
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
    assert "5 invalid settings" in message
    assert "training.learning_rte: unknown key; did you mean 'learning_rate'?" in message
    assert "cut.p = 7: Input should be less than or equal to 1" in message
    assert "supervision.cot = -1" in message and "data.max_tokens = 'x'" in message and "seed = 1.5" in message


@pytest.mark.parametrize(
    "override, path",
    [("training.steps=true", "training.steps"), ("cut={kind: lead, p: true}", "cut.p"), ("seed=false", "seed")],
)
def test_true_is_no_number(recipe: Path, override: str, path: str) -> None:
    with pytest.raises(SettingsError, match=rf"\n  {path}: true or false, where a number belongs"):
        load_settings(Recipe, recipe, [override])


def test_an_empty_text_names_nothing(recipe: Path) -> None:
    paths = ["name", "output", "data.train.path", "student.path", "evaluation.tasks.0.path"]
    empty = [*(f"{path}=''" for path in paths[:3]), "student={kind: pretrained, path: ''}"]
    with pytest.raises(SettingsError) as caught:
        load_settings(
            Recipe, recipe, [*empty, "evaluation.tasks=[{path: '', instruction: ''}]", "evaluation.system=''"]
        )
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        f"  {path} = '': an empty text; give a value, or leave it out where it has a default" for path in paths
    ]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        pytest.param(
            ["training.learning_rate=-1", "training.steps=2", "teacher=null"],
            ["training.learning_rate = -1", "training: give exactly one of epochs and steps", "0.5 with no teacher"],
            id="a value, a rule of its section, a rule of the whole",
        ),
        pytest.param(
            ["name=null", "data=null", "student={kind: random_init, config: {}}", "tokenizer=null", "cut.kind=leads"],
            [
                "name = None",
                "data = None: settings are a mapping",
                "tokenizer is missing",
                "cut.kind = 'leads': did you mean 'lead'?",
            ],
            id="required settings, beside a rule",
        ),
        pytest.param(
            ["training=5", "plan={num_ranks: 2, sharding: none, utilisation: 0.4}"],
            ["training = 5: settings are a mapping", "2 ranks train one model", "a share of a device's peak"],
            id="two rules of one section",
        ),
        pytest.param(["targets={kind: stroe}", "teacher=null"], ["targets.kind = 'stroe'"], id="what a rule needs"),
        pytest.param(["teacher=5"], ["teacher = 5: settings are a mapping"], id="the same, where it may be absent"),
    ],
)
def test_rules_between_settings_are_told_beside_wrong_ones(
    recipe: Path, overrides: list[str], messages: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Recipe, recipe, overrides)
    faults = str(caught.value).split("\n  ")[1:]
    assert len(faults) == len(messages)
    assert all(any(message in fault for fault in faults) for message in messages)


def test_a_key_that_is_called_as_its_kind_is_told_once(recipe: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(Recipe, recipe, ["data.validation={kind: source, path: v.jsonl}"])
    assert str(raised.value).splitlines()[1:] == [
        "  data.validation.source: missing, and it has no default",
        "  data.validation.path: unknown key; did you mean data.validation.source.path?",
    ]


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        pytest.param(["cut={kind: mix, policy: {kind: lead}}", "cut.p=0.25"], "mean cut.policy.p?", id="inside a mix"),
        pytest.param(["learning_rate=1e-5"], "mean training.learning_rate?", id="a section left out"),
        pytest.param(["train.learning_rate=1e-5"], "train: unknown key; did you mean data.train?", id="a section"),
        pytest.param(["seeds=1"], "mean 'seed'?", id="misspelt"),
        pytest.param(
            ["training.temprature=2"], "mean rollout.temperature or loss.temperature?", id="misspelt and elsewhere"
        ),
        pytest.param(["cut=lead"], "write {kind: lead}", id="a policy without braces"),
        pytest.param(["student=Qwen/Q"], "write {kind: pretrained, path: Qwen/Q}", id="a model without braces"),
        pytest.param(["plan.device={peak_tflops: x, memory_gb: 2}"], "plan.device.peak_tflops = 'x'", id="a union"),
        pytest.param(["plan.device=h100"], "h100-sxm, h100-pcie", id="a preset"),
    ],
)
def test_the_right_key_is_named(recipe: Path, overrides: list[str], hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Recipe, recipe, overrides)
    assert hint in str(caught.value) and "1 invalid setting\n" in str(caught.value)


def test_what_an_alias_stands_for_is_a_copy(recipe: Path) -> None:
    text = SMALL.replace("student: {kind: random_init", "student: &model {kind: random_init")
    recipe.write_text(text.replace("{kind: pretrained, path: teacher}", "*model"))
    changed = load_settings(Recipe, recipe, ["student.config.hidden_size=8"])
    assert changed.teacher is not None
    assert (changed.student.config, changed.teacher.config) == (  # type: ignore[union-attr]  # both are RandomInit
        {"model_type": "qwen3", "hidden_size": 8},
        {"model_type": "qwen3"},
    )


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
            ["loss.stop=event", "teacher=null", "loss.kl_weight=0"],
            r"loss\.stop is event with no teacher to say which tokens end its turns: name the teacher",
            id="stop event without a teacher",
        ),
        pytest.param(
            ["teacher=null", "targets={kind: store, path: store}", "rollout={}", "loss.kl_weight=1"],
            r"loss\.stop is event, as it is with a rollout unless said otherwise, with no teacher to say",
            id="rollouts of a store without a teacher",
        ),
        pytest.param(
            ["supervision.token_selection={kind: gap, share: 0.2}", "teacher=null", "loss.kl_weight=0"],
            "token_selection.kind is gap with no teacher",
            id="a gap to nobody",
        ),
        pytest.param(["supervision={prompt: 0, cot: 0, answer: 0}"], "nothing would be learnt", id="no weight"),
        (["data.num_validation=4", "data.validation={kind: none}"], "num_validation 4: there is no validation set"),
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
        pytest.param("- 1", "is a list; a recipe is a mapping of settings", id="list"),
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
    assert parse_yaml("%YAML  1.2 # core schema\n---\n[no]", "here") == ["no"]


def test_overrides_index_lists() -> None:
    values = {"tasks": [{"name": "a"}, {"name": "b"}]}
    apply_overrides(values, ["tasks.1.name=c", "tasks.0.limit=3"])
    assert values == {"tasks": [{"name": "a", "limit": 3}, {"name": "c"}]}
    for index in ("2", "-1", "00", "²", "9" * 5000):
        with pytest.raises(SettingsError, match="must be a list index from 0 to 1"):
            apply_overrides(values, [f"tasks.{index}.name=c"])


def test_the_recipe_of_the_readme_is_valid() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    values = parse_yaml(text.split("```yaml\n")[1].split("```")[0], "README.md")
    assert validate(Recipe, values, "README.md").cut.label == "mix 0.75 lead 0.5"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("per_device_train_batch_size=4", "in a recipe it is training.batching.examples_per_batch"),
        ("training.gradient_accumulation_steps=4", "in a recipe it is training.batching.examples_per_batch"),
        ("max_seq_length=4096", "in a recipe it is data.max_tokens"),
        ("base_model=x", "in a recipe it is student.path"),
        ("model-name-or-path=x", "in a recipe it is student.path"),
        ("num_train_epochs=3", "in a recipe it is training.epochs"),
        ("lora_r=8", "in a recipe it is training.lora.r"),
        ("training.bf16=true", "in a recipe it is training.precision"),
        ("output_dir=x", "in a recipe it is output"),
        ("datasets=[]", "in a recipe it is data.train.path"),
        ("load_in_4bit=true", "in a recipe it is student.quantization: bitsandbytes_4bit"),
        ("beta=0.5", "in a recipe it is loss.divergence: {kind: jensen_shannon"),
        ("do_train=true", "unknown key; not used: `leadspan distill` trains"),
        ("push_to_hub=true", "in a recipe it is push"),
        ("lmbda=0.5", "in a recipe it is rollout"),
        ("gradient_checkpointing=true", "did you mean training.gradient_checkpointing"),
        ("training.warmup_share=50", "warmup_share = 50: Input should be less than 1; write 0.5 for 50 %"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(Recipe, recipe, [override])


def test_every_answer_to_a_name_of_another_tool_is_a_setting(recipe: Path) -> None:
    """A dotted key that an answer begins with leads to a field of a recipe."""
    for name, answer in OTHER_NAMES.items():
        key = re.match(r"[\w.]+(?=$|[,:])", answer)
        models: list[type[BaseModel]] = [Recipe]
        for part in key[0].split(".") if key and not answer.startswith("not used") else []:
            owners = [model for model in models if part in model.model_fields]
            assert owners, f"{name}: {answer}"
            models = [inner for model in owners for inner in models_in(model.model_fields[part].annotation)]


@pytest.mark.slow
def test_the_schema_is_one_and_holds_for_every_recipe_study_and_world() -> None:
    checkers = dict[str, jsonschema.Draft202012Validator]()
    for name, kind in (("recipe", Recipe), ("study", Study), ("world", WorldFiles)):
        schema = json_schema(kind)
        jsonschema.Draft202012Validator.check_schema(schema)
        checkers[name] = jsonschema.Draft202012Validator(schema)
    for path in FOUND:
        checker = checkers.get(path.stem.partition("_")[0], checkers["recipe"])
        values = parse_yaml(path.read_text(), str(path))
        assert [fault.message for fault in checker.iter_errors(values)] == []
        assert list(checker.iter_errors({**values, "sed": 1}))


def test_the_schema_takes_what_stands_for_settings() -> None:
    task = jsonschema.Draft202012Validator(json_schema(EvaluationSettings))
    assert task.is_valid({"tasks": [{"benchmark": "gsm8k"}, {"name": "mine", "path": "x.jsonl"}]})
    assert not task.is_valid({"tasks": [{"name": "mine"}]})
    study = {"name": "s", "output": "o", "recipe": "r.yaml", "before": ["a.yaml", {"recipe": "b.yaml"}]}
    assert jsonschema.Draft202012Validator(json_schema(Study)).is_valid(study)
    assert not jsonschema.Draft202012Validator(json_schema(Study)).is_valid({**study, "before": [1]})
