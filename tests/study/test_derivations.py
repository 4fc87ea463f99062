"""Derivations of stored samples, and the page that is made of a study with them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_studies
import make_studies
import pytest
from derivations import with_derivations

from leadspan.data.supervision import Supervision
from leadspan.errors import RunError
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import load_task
from leadspan.results import RunResult, save_run
from leadspan.study.record import StudyRecord, TrialRecord, save_study
from leadspan.worlds.files import ProblemSet, WorldFiles, write_world
from leadspan.worlds.problems import DeriveAndVerify, Multiplication, Problem, World
from made_runs import made_study

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
Answer = Callable[[int, Problem], str]
RunIn = Callable[..., RunResult]


def mix(p: float) -> dict[str, Any]:
    return {"kind": "mix", "policy": {"kind": "lead", "p": p}, "whole_share": 0.1}


def whole(number: int, problem: Problem) -> str:
    return f"<think>\n{problem.cot}\n</think>\n\n{problem.answer}"


@pytest.fixture
def run_in(make_run: Callable[..., RunResult]) -> RunIn:
    """A run on the held-out problems of a world, whose samples say what `answer` gives for each; written to disk."""

    def make(place: Path, world: World, answer: Answer, name: str, cut: dict[str, Any], seed: int = 0) -> RunResult:
        asked = ProblemSet.model_validate({"world": world, "num_traces": 5, "num_problems": 8})
        write_world(WorldFiles(output=place / "world", sets={"long": asked}))
        task = TaskSettings(name="checked", path=str(place / "world" / "long_test.jsonl"), grader="exact")
        problems = {problem.prompt: problem for problem in world.problems(8, 0, "test")}
        output = place / f"{name}-{seed}"
        settings = {
            "output": str(output),
            "tokenizer": str(place / "world" / "tokenizer"),
            "evaluation": {"tasks": [task.model_dump(mode="json")]},
            "data": {"train": {"path": str(place / "world" / "long.jsonl")}},
            "supervision": {"prompt": 0.0, "cot": 1.0, "answer": 1.0},
        }
        run = make_run(name, 0, cut, tasks=("checked",), settings=settings, seed=seed)
        samples, correct = [], {}
        for number, problem in enumerate(load_task(task)):
            text = answer(number, problems[problem.text])
            samples.append({"problem_id": problem.problem_id, "text": text})
            correct[problem.problem_id] = [int(text.endswith(f"</think>\n\n{problem.gold}"))]
        (output / "samples").mkdir(parents=True)
        (output / "samples" / "checked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        changed = run.evaluations[0].model_copy(
            update={"correct": correct, "num_problems": len(correct), "samples_file": "samples/checked.jsonl"}
        )
        run = run.model_copy(update={"evaluations": [changed]})
        run.environment.update(torch="2", transformers="5")
        save_run(run, output)
        return run

    return make


def derived(run: RunResult) -> list[int]:
    (found,) = with_derivations([run])[0].evaluations
    assert found.accuracy_strict.value == sum(map(sum, found.correct.values())) / len(found.correct)
    return [score for (score,) in found.correct.values()]


def test_what_follows_a_derivation_does_not_matter(tmp_path: Path, run_in: RunIn) -> None:
    def answer(number: int, problem: Problem) -> str:
        derivation = problem.derivation
        wrong_last = derivation[:-1] + str((int(derivation[-1]) + 1) % 5)
        longer = f"{derivation}3"  # the last value is another number
        begun = f"<think>\n{derivation}\nch"
        return [
            whole(0, problem),
            begun,
            f"<think>\n{derivation}",
            f"<think>\n{wrong_last}\n",
            f"<think>\n{longer}",
            f"<think>\ncheck\n{derivation}",
            f"<think>\n{derivation[: len(derivation) // 2]}",
            problem.answer,
        ][number]

    run = run_in(tmp_path, DeriveAndVerify(min_variables=3, max_variables=4), answer, "lead", FULL)
    assert derived(run) == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("stated", [True, False])
def test_the_derivation_of_a_product_reaches_as_far_as_the_chain_of_thought_states_it(
    tmp_path: Path, run_in: RunIn, stated: bool
) -> None:
    def answer(number: int, problem: Problem) -> str:
        lines = problem.cot.split("\n")
        return "<think>\n" + "\n".join(lines[:-1] if number % 2 else lines) + "\n</think>\n\nno"

    run = run_in(tmp_path, Multiplication(answer_in_cot=stated), answer, "lead", FULL)
    assert derived(run) == [1, 0] * 4


def test_samples_that_are_not_there_or_of_another_task_are_refused(tmp_path: Path, run_in: RunIn) -> None:
    run = run_in(tmp_path, DeriveAndVerify(), whole, "full", FULL)
    file = tmp_path / "full-0" / "samples" / "checked.jsonl"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:-2] + b" \n")
    with pytest.raises(RunError, match=r"checked\.jsonl has changed since it was written"):
        with_derivations([run])
    (tmp_path / "full-0" / "digests.json").unlink()
    file.write_text(json.dumps({"problem_id": "someone else's", "text": ""}) + "\n")
    with pytest.raises(RunError, match=r"problem someone else's is none of .*long_test\.jsonl; evaluate on that task"):
        with_derivations([run])
    file.unlink()
    with pytest.raises(RunError, match="start where the study was run"):
        with_derivations([run])


@pytest.mark.slow
def test_a_page_is_made_of_a_study(tmp_path: Path, run_in: RunIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(number: int, problem: Problem) -> str:
        return whole(number, problem) if number < 2 else f"<think>\n{problem.derivation}\n"

    world = DeriveAndVerify(min_variables=3, max_variables=4)
    trials = []
    told: list[tuple[str, dict[str, Any], Answer]] = [
        ("full", FULL, whole),
        ("full, A", FULL, lambda number, problem: f"\n\n{problem.answer}"),
        ("mix 0.9 lead 0.25", mix(0.25), lambda number, problem: "<think>\n"),
        ("mix 0.9 lead 0.5", mix(0.5), half),
    ]
    for name, cut, answer in told:
        for seed in (0, 1):
            run = run_in(tmp_path, world, answer, name, cut, seed)
            if name.endswith("A"):
                assert run.recipe is not None
                recipe = run.recipe.model_copy(update={"supervision": Supervision(prompt=0, cot=0, answer=1)})
                save_run(run.model_copy(update={"recipe": recipe}), tmp_path / f"{name}-{seed}")
            directory = f"{name}-{seed}"
            trials.append(TrialRecord(name=name, seed=seed, directory=directory, fingerprint=directory, state="done"))
    study = made_study(seeds=[0, 1], output=str(tmp_path))
    save_study(StudyRecord(name="s", study=study, trials=trials), tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"By hand.\n\n{make_studies.BEGIN}\nold\n{make_studies.END}\nBy hand too.\n")
    monkeypatch.setattr(sys, "argv", ["make_studies.py", str(tmp_path), str(page)])
    assert make_studies.main() == 0
    lines, num_apart = compare_studies.compare(tmp_path, tmp_path)
    assert lines == ["12 figures: 12 the same, 0 outside the first run's interval"] and num_apart == 0
    text = page.read_text()
    assert text.startswith("By hand.") and text.endswith("By hand too.\n") and "\nold\n" not in text
    assert "Accuracy: **no tested p below 1 is shown to keep 90 %.**" in text  # 2 of 8 of what full has
    assert "`full` better than `full, A`? accuracy no" not in text and "derivation yes, +100" in text
    assert "| `mix 0.9 lead 0.5` | 2 | 25 [" in text and "| 100 [68, 100] % |" in text
    measured = next(line for line in text.splitlines() if line.startswith("| checked, `mix 0.9 lead` |"))
    # of the derivation: 0 of 8 at 0.25, all at 0.5, which does not surely keep 90 %
    assert "| 0.47 (95 % interval: from 0.25 to uncut) |" in measured
    page.write_text("no markers")
    assert make_studies.main() == 2
