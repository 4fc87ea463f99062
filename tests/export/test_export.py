import json
import shlex
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import DatasetDict, load_dataset, load_from_disk

from leadspan.cli import main
from leadspan.errors import RunError, SettingsError
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.export.harness import METRICS, exact_results, export_tasks, math_results
from leadspan.export.trainers import CONFIGS, Exported, export_data
from leadspan.files import file_names, locked
from leadspan.inputs import prepare_data
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe
from leadspan.settings import validate
from recipes import toy_recipe, write_recipe
from studies import toy_task

BOXED = {"think_open": "<think>", "think_close": "</think>", "prompt": "1 + 1", "gold": "2", "choices": []}


def rows_of(recipe: Recipe) -> list[dict[str, list[int]]]:
    """What must be exported, from the examples that training would see."""
    examples = prepare_data(recipe).examples
    made = [examples[index] for index in examples.usable]
    return [
        {
            "input_ids": one.input_ids.tolist(),
            "attention_mask": [1] * len(one.input_ids),
            "labels": [int(i) if w > 0 else -100 for i, w in zip(one.input_ids, one.weights, strict=True)],
        }
        for one in made
    ]


def yaml_of(path: Path) -> dict[str, Any]:
    text = "\n".join(line for line in path.read_text().splitlines() if "!function" not in line)
    return yaml.safe_load(text)  # PyYAML, with which the other programs read it


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="lead"),
        pytest.param({"cut": {"kind": "lead", "p": 0.5, "stop": "append_eos"}}, id="appended stop"),
        pytest.param({"supervision": {"cot": 0, "answer": 1}, "cut": {"kind": "full"}}, id="answer alone"),
        pytest.param({"supervision": {"token_selection": {"kind": "random", "share": 0.5}}}, id="random tokens"),
    ],
)
def test_the_exported_rows_are_the_examples_of_training_token_for_token(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = toy_recipe(tmp_path / "in", **changes)
    written = export_data(recipe, tmp_path / "out")
    expected = rows_of(recipe)
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))
    assert saved["train"].to_list() == expected
    parquet = load_dataset("parquet", data_files=str(tmp_path / "out" / "train.parquet"), split="train")
    assert parquet.to_list() == expected
    assert (written.num_train, written.num_tokens) == (len(expected), sum(len(row["input_ids"]) for row in expected))
    assert written.num_labels == sum(label != -100 for row in expected for label in row["labels"])
    assert all(row["labels"][0] == -100 for row in expected)


def test_validation_is_exported_uncut(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "in")
    written = export_data(recipe, tmp_path / "out")
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))["validation"]
    full = prepare_data(recipe).validation
    assert full is not None and written.num_validation == len(saved) == len(full)
    assert [len(row) for row in saved["input_ids"]] == list(full.lengths)
    assert not list((tmp_path / "out").glob(".*.arrow"))


def test_an_export_that_is_interrupted_leaves_nothing_under_the_names_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = toy_recipe(tmp_path / "in"), tmp_path / "out"
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(DatasetDict, "save_to_disk", lambda *_: signal.raise_signal(signal.SIGINT))
        export_data(recipe, output)
    assert not list(output.glob("[!.]*"))
    export_data(recipe, output)
    alone = toy_recipe(tmp_path / "in", data=recipe.data.model_dump() | {"validation": {"kind": "none"}})
    written = export_data(alone, output)
    assert {*output.iterdir()} == {*written.files} and not (output / "validation.parquet").exists()
    with locked(output / ".lock", RunError), pytest.raises(RunError, match=r"another process .* writes into it"):
        export_data(recipe, output)


def test_data_that_no_export_has_written_stay(tmp_path: Path) -> None:
    recipe, output = toy_recipe(tmp_path / "in"), tmp_path / "out"
    output.mkdir()
    (output / "train.parquet").write_text("mine")
    with pytest.raises(SettingsError, match=r"train.parquet was written by no export and would be lost"):
        export_data(recipe, output)
    assert [path.read_text() for path in output.iterdir()] == ["mine"]


def test_the_settings_name_the_data_and_cut_nothing_again(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path / "in", learning_rate=4e-6, schedule="linear")
    export_data(recipe, tmp_path / "out")
    saved = load_from_disk(str(tmp_path / "out" / "dataset"))
    longest = max(len(row) for split in saved.values() for row in split["input_ids"])
    axolotl = yaml_of(tmp_path / "out" / "axolotl.yaml")
    assert axolotl["sequence_len"] == longest
    assert axolotl["datasets"] == [
        {"path": str(tmp_path / "out" / "train.parquet"), "ds_type": "parquet", "split": "train", "type": None}
    ]
    assert axolotl["test_datasets"][0]["path"] == str(tmp_path / "out" / "validation.parquet")
    factory = yaml_of(tmp_path / "out" / "llama_factory.yaml")
    assert (factory["tokenized_path"], factory["cutoff_len"]) == (str(tmp_path / "out" / "dataset"), longest)
    for values in (axolotl, factory):
        assert values["learning_rate"] == 4e-6 and values["gradient_accumulation_steps"] == 8
        assert values["max_steps"] == 6 and not any("epochs" in name for name in values)
    script = (tmp_path / "out" / "trl_sft.py").read_text()
    assert f"max_length={longest}" in script and "no teacher takes part" in script
    compile(script, "trl_sft.py", "exec")


def test_the_settings_say_what_they_leave_out_of_the_recipe(tmp_path: Path) -> None:
    def comments(**rollout: object) -> str:
        recipe = toy_recipe(tmp_path, rollout=rollout, loss={"kl_weight": 1})
        texts = [text(Exported(tmp_path, recipe, 8, False)) for text in CONFIGS.values()]
        [shared] = {"\n".join(line for line in text.splitlines() if line.startswith("# ")) for text in texts}
        return shared

    alone, mixed = comments(), comments(trace_share=0.5)
    assert "# The recipe's student learns from its own rollouts, which cannot be exported." in alone
    assert "# The recipe's student also learns from its own rollouts" in mixed
    assert "# A step has 8 examples on one device" in alone


def test_the_settings_name_the_revision_of_the_student_and_a_gguf_file(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    student = Pretrained(path="org/model", revision="v2")
    exported = Exported(tmp_path, recipe.model_copy(update={"student": student, "tokenizer": None}), 8, True)
    script, axolotl, factory = (
        CONFIGS[name](exported) for name in ("trl_sft.py", "axolotl.yaml", "llama_factory.yaml")
    )
    assert "model_init_kwargs={'revision': 'v2'}" in script and "from_pretrained('org/model', revision='v2')" in script
    assert yaml.safe_load(axolotl)["revision_of_model"] == "v2"
    assert yaml.safe_load(factory)["model_revision"] == "v2"
    packed = Pretrained(path="org/model", gguf_file="q8.gguf")
    exported = Exported(tmp_path, recipe.model_copy(update={"student": packed}), 8, True)
    assert 'the GGUF file "q8.gguf": convert it first' in CONFIGS["axolotl.yaml"](exported)
    assert "revision" not in CONFIGS["axolotl.yaml"](exported)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supervision": {"cot": 0.5}}, r"supervision\.cot=0\.5: a label is learnt or not; set the weights to 0 or 1"),
        (
            {"supervision": {"token_selection": {"kind": "student_entropy", "share": 0.5}}},
            r"token_selection\.kind=student_entropy asks a model at every step; export without it",
        ),
        (
            {"cut": {"kind": "schedule", "policy": {"kind": "lead"}, "start": 1.0, "end": 0.5}},
            r"changes over training, and a data set does not; export each of its proportions by itself",
        ),
    ],
    ids=["half a weight", "a model's choice", "schedule"],
)
def test_what_labels_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        export_data(toy_recipe(tmp_path / "in", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_tasks(directory: Path, **sampling: Any) -> Recipe:
    tasks = [toy_task(directory), {"benchmark": "aime24", "path": toy_task(directory)["path"]}]
    return toy_recipe(directory, evaluation={"tasks": tasks, "sampling": sampling, "system": "Be brief."})


def test_tasks_hold_the_prompts_of_the_recipe_and_its_sampling(tmp_path: Path) -> None:
    recipe = with_tasks(tmp_path / "in", temperature=1e-5, top_p=0.9, max_new_tokens=33, samples_per_problem=4, seed=5)
    written = export_tasks(recipe, tmp_path / "tasks", "runs/toy/student")
    assert written.names == ("leadspan_toy", "leadspan_aime24")
    lines = [json.loads(line) for line in (tmp_path / "tasks" / "leadspan_toy.jsonl").read_text().splitlines()]
    assert [line["gold"] for line in lines] == ["0", "2", "4"]
    assert "add 1 to itself" in lines[1]["prompt"] and "Be brief." in lines[1]["prompt"]
    task = yaml_of(tmp_path / "tasks" / "leadspan_toy.yaml")
    assert task["dataset_kwargs"] == {"data_files": {"test": str(tmp_path / "tasks" / "leadspan_toy.jsonl")}}
    assert task["generation_kwargs"] == {
        "until": [],
        "do_sample": True,
        "max_gen_toks": 33,
        "temperature": 1e-5,
        "top_p": 0.9,
        # not those of the model's own generation config
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert task["repeats"] == 4 and [metric["metric"] for metric in task["metric_list"]] == list(METRICS)
    text = (tmp_path / "tasks" / "leadspan_toy.yaml").read_text()
    assert "process_results: !function leadspan.export.harness.exact_results" in text
    assert "harness.math_results" in (tmp_path / "tasks" / "leadspan_aime24.yaml").read_text()


def test_tasks_whose_names_differ_in_signs_or_case_keep_files_of_their_own(tmp_path: Path) -> None:
    names = ["long problems", "long-problems", "Long.Problems", "short"]
    tasks = [{**toy_task(tmp_path), "name": name} for name in names]
    written = export_tasks(toy_recipe(tmp_path / "in", evaluation={"tasks": tasks}), tmp_path / "out", "model")
    assert len({path.name.lower() for path in written.files}) == 8 and written.names[3] == "leadspan_short"
    assert [yaml_of(path)["task"] for path in written.files[1::2]] == list(written.names)
    data_files = [yaml_of(path)["dataset_kwargs"]["data_files"]["test"] for path in written.files[1::2]]
    assert data_files == [str(path) for path in written.files[::2]]


@pytest.mark.parametrize(
    "names", [["Test", "test"], ["stra\u00dfe", "strasse"], ["\ufb01x", "fix"], ["a_b", "a b", "a_b_648fa9"]]
)
def test_names_that_a_file_system_may_take_for_one_are_files_of_their_own(names: list[str]) -> None:
    folded = {unicodedata.normalize("NFKC", name).casefold() for name in file_names(names, "_")}
    assert len(folded) == len(names)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tasks\.0\.name"):
        validate(EvaluationSettings, {"tasks": [{**toy_task(tmp_path), "name": "x" * 256}]}, "evaluate")


def test_the_commands_name_the_model_and_the_tasks(tmp_path: Path) -> None:
    recipe = with_tasks(tmp_path / "in", temperature=0.6, max_new_tokens=100)
    written = export_tasks(recipe, tmp_path / "tasks", "my model")
    harness = shlex.split(written.harness)
    assert harness[:4] == ["lm_eval", "--model", "hf", "--model_args"]
    assert harness[4] == "pretrained=my model,dtype=auto,add_bos_token=False"  # as `leadspan evaluate` encodes
    assert harness[harness.index("--tasks") + 1] == "leadspan_toy,leadspan_aime24"
    assert "--apply_chat_template" not in harness  # the prompts are rendered already
    assert written.lighteval is not None
    assert shlex.split(written.lighteval) == [
        "lighteval",
        "accelerate",
        "model_name=my model,generation_parameters={temperature:0.6,top_p:0.95,max_new_tokens:100,seed:0}",
        "aime24|0",
    ]
    assert written.without_lighteval == ("toy",)


def test_tags_that_the_harness_leaves_out_of_answers_are_refused(tmp_path: Path) -> None:
    recipe = with_tasks(tmp_path / "in")
    tokenizer = load_tokenizer(recipe.tokenizer_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    tokenizer.save_pretrained(recipe.tokenizer_path)
    with pytest.raises(SettingsError, match="export: the tokenizer marks </think> as special"):
        export_tasks(recipe, tmp_path / "tasks", "model")
    assert not (tmp_path / "tasks").exists()


def test_a_recipe_without_tasks_has_none_to_export(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"the recipe has no evaluation\.tasks; add one"):
        export_tasks(toy_recipe(tmp_path / "in"), tmp_path / "tasks", "model")


def test_the_harness_is_given_leadspans_grading() -> None:
    texts = ["<think>x</think> \\boxed{2}", "<think>x \\boxed{2}", "<think>x</think> \\boxed{3}", "\\boxed{2}"]
    assert exact_results(BOXED, [texts]) == {
        "accuracy_strict": 0.5,
        "accuracy_flexible": 0.5,
        "thinking_closed": 0.75,
    }
    assert exact_results(BOXED, ["\\boxed{2}"])["accuracy_strict"] == 1.0
    opened = {**BOXED, "prompt": "1 + 1 <think>\n"}  # the prompt opened the thinking, and this text never closed it
    assert exact_results(opened, ["\\boxed{2}"]) == {
        "accuracy_strict": 0.0,
        "accuracy_flexible": 0.0,
        "thinking_closed": 0.0,
    }


def test_the_command_writes_both_and_says_what_they_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_recipe(with_tasks(tmp_path / "in"), tmp_path / "recipe.yaml")
    assert main(["export", str(place), "--output", str(tmp_path / "out"), "cut.p=0.4"]) == 0
    printed = capsys.readouterr().out
    assert "28 training examples under lead 0.4: 1,411 tokens, 412 labels; 8 validation examples, uncut" in printed
    assert "left out: 4 x no weighted position is left" in printed
    assert "lm_eval --model hf" in printed and "run/student" in printed and "lighteval accelerate" in printed
    assert (tmp_path / "out" / "tasks" / "leadspan_toy.yaml").exists()


@pytest.mark.slow
def test_mathematics_is_graded_in_the_harness_too() -> None:
    assert math_results({**BOXED, "gold": "\\frac{1}{2}"}, ["\\boxed{0.5}"])["accuracy_strict"] == 1.0


def test_adapters_have_each_trainer_s_names_and_are_said_to_no_trainer_of_all_weights(tmp_path: Path) -> None:
    def written(**training: object) -> tuple[str, dict[str, Any], dict[str, Any]]:
        exported = Exported(tmp_path, toy_recipe(tmp_path, **training), 8, False)
        script, axolotl, factory = (CONFIGS[name](exported) for name in CONFIGS)
        return script, *(yaml.safe_load(text) for text in (axolotl, factory))

    script, axolotl, factory = written(lora={"r": 4, "alpha": 8, "dropout": 0.1})
    compile(script, "trl_sft.py", "exec")
    assert "{'r': 4, 'lora_alpha': 8.0, 'lora_dropout': 0.1, 'target_modules': 'all-linear'}" in script
    expected = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_linear": True}
    assert expected.items() <= axolotl.items() and "lora_target_modules" not in axolotl
    expected = {"finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target": "all"}
    assert expected.items() <= factory.items()
    _, axolotl, factory = written(lora={"target_modules": ["q_proj", "v_proj"]})
    assert axolotl["lora_target_modules"] == ["q_proj", "v_proj"] and "lora_target_linear" not in axolotl
    assert factory["lora_target"] == "q_proj,v_proj"
    script, axolotl, factory = written()
    assert "peft" not in script and "adapter" not in axolotl and factory["finetuning_type"] == "full"


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"lora": {"r": 2}}], ids=["all weights", "LoRA"])
def test_trl_trains_on_the_exported_rows_as_they_are(tmp_path: Path, training: dict[str, Any]) -> None:
    """The script that is written runs, and `SFTTrainer` keeps every id and label."""
    pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM

    from leadspan.models.loading import load_model

    recipe = toy_recipe(tmp_path / "in", **training)
    export_data(recipe, tmp_path / "out")
    model = load_model(recipe.student, torch.float32)
    model.save_pretrained(tmp_path / "student")
    script = (
        (tmp_path / "out" / "trl_sft.py").read_text().replace("DIRECTORY-OF-THE-STUDENT", str(tmp_path / "student"))
    )
    script = script.replace("max_steps=6", "max_steps=2, report_to='none', use_cpu=True")
    script += (
        "import json, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'seen.json')!r}).write_text(json.dumps(trainer.train_dataset.to_list()))\n"
        f"trainer.save_model({str(tmp_path / 'trained')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    seen = json.loads((tmp_path / "seen.json").read_text())
    expected = rows_of(recipe)
    assert [row["input_ids"] for row in seen] == [row["input_ids"] for row in expected]
    assert [row["labels"] for row in seen] == [row["labels"] for row in expected]
    if training:
        settings = json.loads((tmp_path / "trained" / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (2, 32)
        return
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").state_dict()
    assert any(not (before[name] == after[name]).all() for name in before)


@pytest.mark.slow
def test_the_harness_runs_the_exported_tasks(tmp_path: Path) -> None:
    """EleutherAI's own evaluator on a tiny model: it reads the files, draws, and calls the graders."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from leadspan.models.loading import load_model

    recipe = with_tasks(tmp_path / "in", max_new_tokens=4, samples_per_problem=2)
    load_model(recipe.student, torch.float32).save_pretrained(tmp_path / "student")
    written = export_tasks(recipe, tmp_path / "tasks", str(tmp_path / "student"))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={
            "pretrained": str(tmp_path / "student"),
            "tokenizer": recipe.tokenizer_path,
            "add_bos_token": False,
        },
        tasks=list(written.names),
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    for name, grade in zip(written.names, (exact_results, math_results), strict=True):
        samples = found["samples"][name]
        lines = [json.loads(line) for line in (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()]
        assert [sample["arguments"][0][0] for sample in samples] == [line["prompt"] for line in lines]
        assert all(len(sample["filtered_resps"][0]) == 2 for sample in samples)
        graded = [grade(line, sample["filtered_resps"]) for line, sample in zip(lines, samples, strict=True)]
        for metric in METRICS:
            mean = sum(one[metric] for one in graded) / len(graded)
            assert found["results"][name][f"{metric},all"] == pytest.approx(mean)
