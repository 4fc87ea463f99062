"""All that can be known to be wrong is told at once: the lines of two faults are those of each by itself."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from leadspan.cli import main
from leadspan.errors import SettingsError
from leadspan.recipe import Recipe
from leadspan.settings import validate
from leadspan.study.settings import Study

RIGHT = {
    "name": "right",
    "output": "run",
    "tokenizer": "t",
    "data": {"train": {"path": "x.jsonl"}},
    "student": {"kind": "pretrained", "path": "a/b"},
    "teacher": {"kind": "pretrained", "path": "a/c"},
    "cut": {"kind": "mix", "policy": {"kind": "lead", "p": 0.5}, "whole_share": 0.1},
    "training": {"steps": 2, "batching": {"kind": "examples"}},
    "evaluation": {"tasks": [{"name": "a", "path": "x.jsonl"}, {"name": "b", "path": "y.jsonl"}]},
}
FAULTS: tuple[tuple[str, Any], ...] = (
    ("seed", -1),
    ("bogus", 1),
    ("data.validation", {"kind": "source"}),
    ("data.train.think_open", "<t>"),
    ("data.train.limit", 0),
    ("student.quantization", "4bit"),
    ("teacher.revision", 3),
    ("cut.policy.p", 2),
    ("cut.whole_share", 5),
    ("cut.kind", "mx"),
    ("cut.policy.kind", "led"),
    ("loss.temperature", -1),
    ("training.epochs", 3),
    ("training.batching.examples_per_step", 0),
    ("training.lora", {"rank": 0}),
    ("evaluation.tasks.0.grader", "choice"),
    ("evaluation.tasks.0.limit", 0),
    ("evaluation.tasks.0.benchmark", "gsm9k"),
    ("evaluation.tasks.1.choices", {"columns": ["a"], "texts": ["b"]}),
    ("evaluation.sampling.temperature", -1),
    ("supervision.token_selection", {"kind": "random"}),
    ("rollout", {"max_new_tokens": 8}),
    ("plan.device", "h1000"),
)


def lines(*faults: tuple[str, Any]) -> set[str]:
    values: dict[str, Any] = copy.deepcopy(RIGHT)
    for key, value in faults:
        *parents, last = key.split(".")
        node: Any = values
        for name in parents:
            node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        node[last] = value
    with pytest.raises(SettingsError) as caught:
        validate(Recipe, values, "r")
    return set(str(caught.value).split("\n  ")[1:])


def test_two_faults_are_told_together() -> None:
    validate(Recipe, RIGHT, "r")
    by_itself = {fault[0]: lines(fault) for fault in FAULTS}
    for one, other in itertools.combinations(FAULTS, 2):
        missing = (by_itself[one[0]] | by_itself[other[0]]) - lines(one, other)
        assert not missing, (one, other)


def test_a_name_that_two_tasks_share_is_no_rule_on_a_faulty_name() -> None:
    assert lines(("evaluation.tasks.1.name", "a"), ("evaluation.tasks.0.limit", 0)) == {
        "evaluation: two tasks are called 'a'; give them different names (tasks.1.name)",
        "evaluation.tasks.0.limit = 0: Input should be greater than or equal to 1",
    }


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (
            {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0, "end": 0.5},
            ".start = 0: Input should be greater",
        ),
        ({"kind": "schedule", "policy": {"kind": "lead"}}, ".start: missing, and it has no default"),
        ({"kind": "mix", "policy": "lead"}, ".policy = 'lead': settings are a mapping; write {kind: lead}"),
        ({}, ".kind: missing; one of full, lead,"),
        ("lead", " = 'lead': settings are a mapping; write {kind: lead}"),
    ],
)
def test_a_fault_in_a_list_within_a_list_is_told_by_its_path(cut: Any, expected: str) -> None:
    right = [{"kind": "full"}, {"kind": "lead", "p": 0.5}]
    values = {"name": "s", "output": "o", "recipe": "r.yaml"}
    for axes, where in (
        ({"axes": {"cut": [*right, cut]}}, "axes.cut.2"),
        ({"more_axes": [{"cut": right}, {"cut": [*right, cut]}]}, "more_axes.1.cut.2"),
    ):
        with pytest.raises(SettingsError) as caught:
            validate(Study, {**values, **axes}, "s")
        assert f"  {where}{expected}" in str(caught.value)


def test_settings_and_what_they_name_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: x\noutput: {tmp_path}/run\ndata: {{train: {{path: ./no.jsonl}}, validation: {{kind: suorce, source: "
        "{path: ./gone.jsonl}}}\nstudent: {kind: random_init, config: {model_type: qwen3}}\nteacher: "
        "{kind: pretrained, path: ./t}\ntraining: {lerning_rate: 1}\nloss: {kl_weight: 0}\n"
    )
    assert main(["distill", str(recipe), "noequals", "plan.device=h10"]) == 2
    said = capsys.readouterr().err
    for line in (
        "10 invalid settings",
        "override 'noequals': write it as key.sub=value",
        "data.validation.kind = 'suorce': did you mean 'source'?",
        "training.lerning_rate: unknown key; did you mean 'learning_rate'?",
        "plan.device = 'h10': no preset of this name",
        "loss.kl_weight is 0 with a teacher",
        "tokenizer is missing",
        "data.train.path = './no.jsonl': no such file or directory",
        "data.validation.source.path = './gone.jsonl': no such file",
        "teacher.path = './t': no such file",
    ):
        assert line in said
