import json
from pathlib import Path

import pytest
from test_evaluate import write_model

from leadspan.answers.grading import GradeItem, MathGrader
from leadspan.cli import main
from leadspan.errors import SettingsError
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import Problem, load_task
from leadspan.pipeline.run import run
from leadspan.results import load_run
from leadspan.settings import validate
from recipes import toy_recipe


def task(path: str = "reasoning-gym:countdown", **values: object) -> TaskSettings:
    return validate(TaskSettings, {"path": path, **values}, "task")


def test_problems_follow_from_options_and_begin_alike() -> None:
    def made(limit: int, seed: int) -> list[Problem]:
        return load_task(task(limit=limit, options={"min_numbers": 3, "max_numbers": 3, "seed": seed}))

    three = [problem.problem_id for problem in made(3, seed=0)]
    assert [problem.problem_id for problem in made(5, seed=0)[:3]] == three
    # reasoning-gym draws problem i with seed + i, so that neighbouring seeds share problems
    assert [problem.problem_id for problem in made(2, seed=1)] == three[1:]
    assert {problem.problem_id for problem in made(3, seed=100)}.isdisjoint(three)
    assert task().name == "countdown" and made(1, seed=0)[0].text.endswith("within \\boxed{}.")


def test_the_verifier_takes_any_right_answer_and_only_those() -> None:
    (problem,) = load_task(task(limit=1, options={"min_numbers": 3, "max_numbers": 3}))
    assert problem.gold == "98*54/6"  # of 98, 6 and 54, for 882
    texts = {
        "</think>\\boxed{54/6*98}": "right",
        "</think>98*54/6": "right",
        "</think>\\boxed{98+54+6}": "wrong",
        "</think>\\boxed{98*54/6} or \\boxed{9**9**9**9}": "timeout",
        "</think>": "no_answer",
        "98*54/6": "right",
    }
    items = [GradeItem(text, problem.entry, True) for text in texts]
    with MathGrader(num_workers=2, item_seconds=2) as grader:
        verdicts = grader.grade_by_verifier([*items, GradeItem("</think>98*54/6", problem.entry, False)])
    assert {text: verdict.strict for text, verdict in zip(texts, verdicts, strict=False)} == texts
    assert (verdicts[-1].strict, verdicts[-1].flexible) == ("no_answer", "right")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        pytest.param(
            "reasoning-gym:leg_countin", {}, r"no data set 'leg_countin'; did you mean 'leg_counting'\?", id="name"
        ),
        pytest.param(
            "reasoning-gym:countdown", {"legs": 3}, r"options \{'legs': 3\} do not fit .* 'legs'", id="setting"
        ),
        pytest.param("reasoning-gym:countdown", {"min_numbers": 0}, r"do not fit .* greater than 1", id="range"),
    ],
)
def test_what_cannot_be_made_is_said(path: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_task(task(path, options=options))


def test_options_and_verifier_belong_to_made_problems() -> None:
    with pytest.raises(SettingsError, match="go with path: reasoning-gym:DATASET"):
        task("problems.jsonl", name="own", grader="reasoning_gym")


@pytest.mark.slow
def test_evaluate_takes_a_data_set_by_name(tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "m"), tmp_path / "out"
    command = ["evaluate", str(model), "reasoning-gym:leg_counting", "--limit", "2", "--output", str(out)]
    assert main([*command, "--set", "sampling.max_new_tokens=4"]) == 0
    (result,) = load_run(out).evaluations
    assert (result.task, result.num_problems) == ("leg_counting", 2)
    rows = [json.loads(line) for line in (out / "samples" / "leg_counting.jsonl").read_text().splitlines()]
    assert all("how many legs" in row["prompt"] for row in rows)


@pytest.mark.slow
def test_rollouts_are_drawn_from_made_prompts(tmp_path: Path) -> None:
    rollout = {
        "prompts": {"kind": "task", "task": {"path": "reasoning-gym:leg_counting", "limit": 4}},
        "max_new_tokens": 4,
        "horizon": {"kind": "fixed", "tokens": 4},
    }
    recipe = toy_recipe(tmp_path, steps=1, rollout=rollout, loss={"kl_weight": 1, "divergence": {"kind": "reverse_kl"}})
    run(recipe)
    rollouts = (recipe.output / "rollouts.jsonl").read_text().splitlines()
    assert len(rollouts) == 8 and len({json.loads(line)["prompt"] for line in rollouts}) == 4
    identity = json.loads((recipe.output / "identity.json").read_text())
    assert identity["contents"]["rollout.prompts.task"] == "reasoning-gym:leg_counting"
