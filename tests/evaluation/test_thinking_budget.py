import json
from pathlib import Path

import pytest
from test_evaluate import write_model, write_task

from leadspan.answers.boxes import is_thinking_closed
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation.evaluate import evaluate_model
from leadspan.evaluation.sampling import Sample
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.evaluation.subject import StoredSample, ThinkingBudget
from leadspan.models.settings import Pretrained
from toys import ALPHABET, TEMPLATE, character_tokenizer

OPENS = TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
TIMED = ("seconds", "checksum")
CLOSING = "\n</think>\n\n"
SAMPLING = {"max_new_tokens": 60, "samples_per_problem": 2, "temperature": 1.0}


def evaluate(directory: Path, output: Path, **sampling: object):
    task = {"name": "toy", "path": str(write_task(directory)), "grader": "exact"}
    settings = EvaluationSettings.model_validate({"tasks": [task], "sampling": SAMPLING | sampling})
    model = Pretrained(path=str(directory / "m"))
    return evaluate_model(model, model, Rendering(), settings, output)


def rows(output: Path, name: str = "toy") -> list[dict]:
    lines = (output / "samples" / f"{name}.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def test_both_kinds_of_figures_come_from_the_same_thinking(tmp_path: Path) -> None:
    """A random model closes the thinking that its header opens by chance, and seldom within twenty tokens."""
    write_model(tmp_path / "m", OPENS)
    [plain] = evaluate(tmp_path, tmp_path / "plain")
    by_itself, made = evaluate(tmp_path, tmp_path / "out", thinking_budget=20)
    assert (by_itself.task, made.task) == ("toy", "toy, made to answer")
    assert (by_itself.answering, made.answering) == ("by itself", "made to answer")
    assert made.samples_file == "samples/toy, made to answer.jsonl"
    without = {"seconds", "sampling"}
    assert by_itself.model_dump(exclude=without) == plain.model_dump(exclude=without)
    pairs = list(zip(rows(tmp_path / "plain"), rows(tmp_path / "out", made.task), strict=True))
    closed_for = [(alone, answered) for alone, answered in pairs if answered["text"] != alone["text"]]
    assert len(pairs) == 8 and len(closed_for) >= 4
    assert (by_itself.closed_for_rate, made.closed_for_rate) == (None, len(closed_for) / 8)
    tokenizer = character_tokenizer()
    for alone, answered in closed_for:
        ids = tokenizer(alone["text"], add_special_tokens=False)["input_ids"]
        assert answered["text"].startswith(tokenizer.decode(ids[:20]) + CLOSING)
        assert min(len(ids), 20) + 4 < answered["num_tokens"] <= 60
        assert (answered["problem_id"], answered["sample"]) == (alone["problem_id"], alone["sample"])
    assert all("</think>" in answered["text"] for _, answered in pairs)
    assert made.termination_rate.value == sum(answered["finish_reason"] == "stop" for _, answered in pairs) / 8


def test_an_interrupted_answer_goes_on_and_another_budget_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "m", OPENS)
    evaluate(tmp_path, tmp_path / "out", thinking_budget=20)
    file = tmp_path / "out" / "samples" / "toy, made to answer.jsonl"
    whole = rows(tmp_path / "out", file.stem)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    evaluate(tmp_path, tmp_path / "out", thinking_budget=20)
    assert rows(tmp_path / "out", file.stem) == whole
    with pytest.raises(EvaluationError, match="other sampling settings"):
        evaluate(tmp_path, tmp_path / "out", thinking_budget=21)


@pytest.mark.parametrize(
    ("text", "reason", "begun"),
    [
        pytest.param("short</think>4", "stop", None, id="closed within the budget"),
        pytest.param("short</think>4 and on", "length", None, id="closed within the budget, its answer has no end"),
        pytest.param(ALPHABET[:41] + "</think>4", "stop", ALPHABET[:40], id="closed too late"),
        pytest.param("b" * 40 + "</think>4", "stop", None, id="closed with the last token of the budget"),
        pytest.param("no thinking at all" * 3, "stop", None, id="thinking never opened"),
        pytest.param("closed</think>" + ALPHABET + "</think>", "stop", None, id="a closing tag in the answer"),
        pytest.param("no end", "stop", "no end", id="turn ended while thinking"),
        pytest.param("c" * 500, "length", "c" * 39, id="looping: 30 tokens for the tenth time"),
        pytest.param("in</think><think>again", "length", "in</think><think>again", id="thinking opened again"),
    ],
)
def test_where_thinking_is_closed(text: str, reason: str, begun: str | None) -> None:
    tokenizer = character_tokenizer(OPENS)
    budget = ThinkingBudget.of(40, 100, PromptRenderer(tokenizer, Rendering()))
    prompt = "add" if text.startswith("no thinking") else "add<think>\n"
    closed = is_thinking_closed(text, prompt, "<think>", "</think>")
    stored = StoredSample("p", 0, prompt, Sample(text, len(text), reason, False), closed, 1.0)
    requests = budget.requests([stored])
    assert [tokenizer.decode(r.begun) for r in requests.values()] == ([] if begun is None else [begun + CLOSING])


def test_a_budget_leaves_room_for_an_answer() -> None:
    renderer = PromptRenderer(character_tokenizer(OPENS), Rendering())
    with pytest.raises(EvaluationError, match=r"leave no token of sampling\.max_new_tokens 40"):
        ThinkingBudget.of(38, 40, renderer)


def test_a_budget_that_the_window_has_no_room_for_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """Prompts of 26 tokens, 40 of thinking and four that close it fill a window of 70."""
    write_model(tmp_path / "m", OPENS, max_position_embeddings=70)
    with pytest.raises(EvaluationError, match=r"prompt and closed thinking .* lower sampling\.thinking_budget"):
        evaluate(tmp_path, tmp_path / "out", thinking_budget=40)
    assert not (tmp_path / "out" / "samples").exists()
