import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from benchmarks import hold_process

from leadspan.answers.boxes import with_usual_tags
from leadspan.answers.grading import GradeItem, exact_grade
from leadspan.cli import main
from leadspan.data.settings import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation.evaluate import evaluate_model
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.models.loading import load_model
from leadspan.models.settings import Pretrained
from leadspan.results import load_run
from toys import DROPS_COT, TEMPLATE, character_tokenizer, tiny

SETTINGS = {"sampling": {"max_new_tokens": 40, "batch_size": 3, "samples_per_problem": 3}}


def write_model(directory: Path, template: str | None = TEMPLATE, seed: int = 4, **config: object) -> Path:
    load_model(tiny(seed=seed, **config), torch.float32, for_training=False).save_pretrained(directory)
    character_tokenizer(template).save_pretrained(directory)
    return directory


def write_task(directory: Path, number: int = 4) -> Path:
    path = directory / "toy.jsonl"
    path.write_text("".join(json.dumps({"problem": f"add {i}", "answer": str(i)}) + "\n" for i in range(1, number + 1)))
    return path


def evaluate(model: Path, task: Path, output: Path, **changes: object):
    values = {**SETTINGS, "tasks": [{"name": "toy", "path": str(task), "grader": "exact"}], **changes}
    subject = Pretrained(path=str(model))
    return evaluate_model(subject, subject, Rendering(), EvaluationSettings.model_validate(values), output)[0]


def lines(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "samples" / "toy.jsonl").read_text().splitlines()]


def drawn(output: Path) -> list[tuple[object, ...]]:
    return [(row["problem_id"], row["sample"], row["text"], row["num_tokens"]) for row in lines(output)]


@pytest.mark.slow
def test_every_sample_is_stored(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    tasks = [{"name": "toy", "path": str(task), "grader": "math"}]
    found = evaluate(write_model(tmp_path / "m"), task, tmp_path / "out", system="Be brief.", tasks=tasks)
    rows = lines(tmp_path / "out")
    assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    for row in rows:
        assert row["weights_hash"] == found.weights_hash
        assert row["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nadd ")
        assert row["finish_reason"] in ("stop", "length") and row["num_tokens"] <= 40
        assert {"text", "thinking_closed", "loops", "seconds", "strict", "flexible", "extracted"} <= set(row)
    assert found.pass_at["1"].value == pytest.approx(found.accuracy_strict.value)
    assert found.seconds >= sum(row["seconds"] for row in rows)


@pytest.mark.parametrize("template", [DROPS_COT, DROPS_COT.replace("{{ m.content.split('</think>')[-1] }}", "...")])
def test_only_the_prompt_side_of_a_template_is_needed(tmp_path: Path, template: str) -> None:
    found = evaluate(write_model(tmp_path / "m", template), write_task(tmp_path, 1), tmp_path / "out")
    assert found.num_problems == 1


def test_the_templates_own_end_of_turn_ends_a_sample(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # as base checkpoints have it
    model = write_model(tmp_path / "m")
    tokenizer.save_pretrained(model)
    evaluate(model, write_task(tmp_path), tmp_path / "out", sampling={"max_new_tokens": 150, "samples_per_problem": 4})
    rows = lines(tmp_path / "out")
    assert any(row["finish_reason"] == "stop" for row in rows)
    assert not any("<|im_end|>" in str(row["text"]) for row in rows)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    model, task = write_model(tmp_path / "m"), write_task(tmp_path)
    whole = evaluate(model, task, tmp_path / "whole")
    file = tmp_path / "part" / "samples" / "toy.jsonl"
    evaluate(model, task, tmp_path / "part", tasks=[{"name": "toy", "path": str(task), "limit": 2, "grader": "exact"}])
    kept = lines(tmp_path / "part")
    file.write_bytes(file.read_bytes() + file.read_bytes()[: file.stat().st_size // 9])  # a line that was being written
    again = evaluate(model, task, tmp_path / "part")
    assert drawn(tmp_path / "part") == drawn(tmp_path / "whole")
    assert [row["seconds"] for row in lines(tmp_path / "part")][: len(kept)] == [row["seconds"] for row in kept]
    assert again.correct == whole.correct


def test_an_evaluation_goes_on_with_other_tags_as_if_begun_with_them(tmp_path: Path) -> None:
    """Where a text opens no thinking it is closed; now every prompt opens it, and nothing closes it."""
    model, task = write_model(tmp_path / "m"), write_task(tmp_path)
    evaluate(model, task, tmp_path / "out")
    assert any(row["thinking_closed"] for row in lines(tmp_path / "out"))
    subject, tags = Pretrained(path=str(model)), Rendering(think_open="assistant", think_close="unseen")
    values = {**SETTINGS, "tasks": [{"name": "toy", "path": str(task), "grader": "exact"}]}
    evaluate_model(subject, subject, tags, EvaluationSettings.model_validate(values), tmp_path / "out")
    assert not any(row["thinking_closed"] for row in lines(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "other_model", "message"),
    [
        pytest.param({}, True, r"toy.jsonl:1: it was drawn from weights \w+, not from \w+", id="weights"),
        pytest.param({"sampling": {**SETTINGS["sampling"], "seed": 1}}, False, "other sampling settings", id="seed"),
        pytest.param({"system": "Hm."}, False, "another task or prompt", id="prompt"),
        pytest.param(
            {"sampling": {**SETTINGS["sampling"], "samples_per_problem": 1}},
            False,
            "is sample 2 of its problem, of which fewer",
            id="fewer samples",
        ),
    ],
)
def test_samples_of_another_evaluation_are_refused(
    tmp_path: Path, changes: dict[str, object], other_model: bool, message: str
) -> None:
    model, task = write_model(tmp_path / "m"), write_task(tmp_path)
    evaluate(model, task, tmp_path / "out")
    before = (tmp_path / "out" / "samples" / "toy.jsonl").read_bytes()
    if other_model:
        model = write_model(tmp_path / "other", seed=5)
    with pytest.raises(EvaluationError, match=message):
        evaluate(model, task, tmp_path / "out", **changes)
    assert (tmp_path / "out" / "samples" / "toy.jsonl").read_bytes() == before


def test_damaged_lines_are_named_and_drawn_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, task = write_model(tmp_path / "m"), write_task(tmp_path)
    whole = evaluate(model, task, tmp_path / "out")
    file, before = tmp_path / "out" / "samples" / "toy.jsonl", drawn(tmp_path / "out")
    flipped = bytearray(file.read_bytes())
    place = flipped.index(b'"text": "') + 9
    flipped[place] ^= 1
    file.write_bytes(flipped + b"{}\n")
    again = evaluate(model, task, tmp_path / "out")
    assert f"{file}: damaged in 2 lines, first line 1; they are moved to toy.jsonl.damaged" in caplog.text
    assert drawn(tmp_path / "out") == before and again.correct == whole.correct
    assert file.with_name("toy.jsonl.damaged").read_bytes() == flipped.splitlines(keepends=True)[0] + b"{}\n"


def test_the_number_of_samples_is_the_tasks_own_unless_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, path = write_model(tmp_path / "m"), str(write_task(tmp_path, 1))
    tasks = [{"name": "two", "path": path, "grader": "exact", "samples_per_problem": 2}]
    tasks.append({"name": "one", "path": path, "grader": "exact"})
    settings = EvaluationSettings.model_validate({"tasks": tasks, "sampling": {"max_new_tokens": 4, "temperature": 0}})
    found = evaluate_model(
        Pretrained(path=str(model)), Pretrained(path=str(model)), Rendering(), settings, tmp_path / "out"
    )
    assert [result.samples_per_problem for result in found] == [2, 1]
    # A greedy answer again and again is one answer.
    assert "2 samples of a problem say no more than one" in caplog.text


@pytest.mark.slow
def test_killed_and_started_again_it_draws_the_same(tmp_path: Path) -> None:
    model, task = write_model(tmp_path / "m", max_position_embeddings=4000), write_task(tmp_path, 12)
    sampling = {"max_new_tokens": 150, "batch_size": 1, "samples_per_problem": 2}
    whole = evaluate(model, task, tmp_path / "whole", sampling=sampling)
    options = [f"--set=sampling.{key}={value}" for key, value in sampling.items()]
    command = [
        "evaluate",
        str(model),
        str(task),
        "--output",
        str(tmp_path / "out"),
        *options,
        "--set=tasks.0.grader=exact",
    ]
    file = tmp_path / "out" / "samples" / "toy.jsonl"
    pid = hold_process.start(tmp_path, command)
    while not (file.exists() and file.read_bytes().count(b"\n") >= 3):
        assert not hold_process.has_ended(pid), "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    hold_process.wait(pid, tmp_path, 0)
    assert 3 <= file.read_bytes().count(b"\n") < 24
    assert main(command) == 0
    assert drawn(tmp_path / "out") == drawn(tmp_path / "whole")
    assert load_run(tmp_path / "out").evaluations[0].correct == whole.correct


@pytest.mark.shared
def test_a_known_benchmark_from_the_command_line(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_model(tmp_path / "m"))
    known = f"aime25={shared / 'benchmarks' / 'aime25.jsonl'}"
    options = ["--set=sampling.max_new_tokens=3", "--set=sampling.samples_per_problem=2", "--set=tasks.0.limit=4"]
    assert main(["evaluate", ".", known, "--output", str(tmp_path / "out"), *options]) == 0
    result = load_run(tmp_path / "out")
    (found,) = result.evaluations
    assert result.name == result.label == "m"
    assert (found.task, found.num_problems, found.samples_per_problem) == ("aime25", 4, 2)
    assert "aime25: pass" in capsys.readouterr().out
    assert (
        "within \\boxed{}"
        in json.loads((tmp_path / "out" / "samples" / "aime25.jsonl").read_text().splitlines()[0])["prompt"]
    )


@pytest.mark.parametrize(
    ("text", "is_closed", "flexible"),
    [
        ("42", False, "no_answer"),
        ("so</think>42", True, "right"),
        ("42", True, "right"),
        ("<think>42", False, "no_answer"),
    ],
)
def test_thinking_that_the_prompt_opened_is_no_answer(text: str, is_closed: bool, flexible: str) -> None:
    verdict = exact_grade(GradeItem(with_usual_tags(text, is_closed, "<think>", "</think>"), "42", is_closed))
    assert verdict.flexible == flexible
