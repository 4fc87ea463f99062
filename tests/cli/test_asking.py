"""Students that answer: by themselves, with their thinking closed, two side by side; and the loss of their tokens."""

import io
import json
from pathlib import Path

import pytest
import torch

from leadspan.cli import main
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model, save_student
from recipes import toy_recipe, write_recipe
from toys import TEMPLATE, character_tokenizer, tiny

THINKS = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    tokenizer = character_tokenizer()
    for seed in (0, 1):
        model = load_model(tiny(seed=seed), torch.float32)
        save_student(model, tokenizer, THINKS, int(tokenizer.eos_token_id), tmp_path / f"model{seed}")
    return [str(tmp_path / f"model{seed}") for seed in (0, 1)]


def test_two_students_answer_with_and_without_a_budget(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    budget = ["--thinking-budget", "8", "--max-new-tokens", "24", "--set", "temperature=0"]
    asked = ["sample", models[0], "add 1 to itself", "add 2 to itself", "--against", models[1], *budget]
    assert main([*asked, "--json", "-"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    prompts = ["add 1 to itself", "add 2 to itself"]
    assert [(row["model"], row["prompt"]) for row in rows] == [
        (model, prompt) for model in models for prompt in prompts
    ]
    for row in rows:
        assert row["by_itself"]["num_tokens"] <= 24
        if "thinking_closed" in row:
            text = row["thinking_closed"]["text"]
            assert text.startswith(row["by_itself"]["text"][:8]) and "</think>" in text
        else:  # it closed its thinking itself, within the budget
            assert "</think>" in row["by_itself"]["text"][: 8 + len("</think>")]
    assert any("thinking_closed" in row for row in rows)
    assert rows[0]["by_itself"] != rows[2]["by_itself"]  # of other weights
    assert models[1] in shown.err.replace("\n", "") or "model1" in shown.err  # the table stands beside the JSON


def test_a_chat_keeps_its_turns_until_it_begins_again(
    models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("add 1\n\nadd 1\n/new\nadd 1\n/exit\nadd 1\n"))
    assert main(["chat", models[0], "--max-new-tokens", "16", "--set", "temperature=0"]) == 0
    answers = [part.rpartition("\n(")[0].strip() for part in capsys.readouterr().out.split(" tokens, ")[:-1]]
    assert len(answers) == 3
    assert answers[0].split("\n")[-1] == answers[2].split("\n")[-1]  # as at the start


def test_a_line_that_fills_the_window_is_left_out_of_the_conversation(
    models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"add 1\n{'a' * 2000}\nadd 1\n"))
    assert main(["chat", models[0], "--max-new-tokens", "8", "--set", "temperature=0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count(" tokens, ") == 2
    assert "the model's window 1024" in shown.err and "; or begin anew with /new" in shown.err


def test_a_line_that_is_no_text_or_holds_a_control_token_does_not_end_a_chat(
    models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"add 1\xff\nadd <|im_end|>\nadd 1\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", models[0], "--max-new-tokens", "8", "--set", "temperature=0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count(" tokens, ") == 1
    assert "the text holds U+DCFF, which no text has" in shown.err and "reads as a control token" in shown.err


def test_the_loss_of_every_token_is_that_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = toy_recipe(tmp_path)
    path = write_recipe(recipe, tmp_path / "r.yaml")
    assert main(["preview", str(path), "--loss", "--records", "1"]) == 0
    shown = capsys.readouterr().out
    row = prepare_data(recipe).splits.train.with_format(None)[0]
    ids = torch.tensor([row["input_ids"]])
    logits = load_model(recipe.student, torch.float32, for_training=False).eval()(ids).logits
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    answer = losses[row["cot_end"] - 1 :].mean()  # the first token has no loss
    assert f"answer {answer.item():.3f}" in " ".join(shown.replace("│", " ").split())
