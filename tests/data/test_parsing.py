from typing import Any

import pytest

from leadspan.data.config import TraceSource
from leadspan.data.formats import bind, parse
from leadspan.data.parsing import Unusable, split_reasoning
from leadspan.data.records import Refusal, Trace

R1 = "<think>\nTwo and two.\n\nThat makes 4.\n</think>\n\nThe sum is \\boxed{4}.\n"
SKY = (
    "<|begin_of_thought|>\n\nTwo and two.\n\nThat makes 4.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nThe sum is \\boxed{4}.\n\n<|end_of_solution|>"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(R1, id="think"),
        pytest.param(R1.removeprefix("<think>"), id="think, opened by the prompt"),
        pytest.param("\n " + R1, id="white space first"),
        pytest.param(SKY, id="thought"),
        pytest.param(SKY.removeprefix("<|begin_of_thought|>"), id="thought, opened by the prompt"),
        pytest.param(
            SKY.replace("<|begin_of_solution|>", "").replace("<|end_of_solution|>", ""),
            id="thought without solution tags",
        ),
        pytest.param(SKY.replace("<|begin_of_solution|>", ""), id="only the end of the solution is tagged"),
    ],
)
def test_both_tag_families_give_the_same_two_parts(text: str) -> None:
    assert split_reasoning(text) == ("Two and two.\n\nThat makes 4.", "The sum is \\boxed{4}.")


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        pytest.param("It is 4.", "no think tags", "'It is 4.'", id="no tags"),
        pytest.param("", "no think tags", "''", id="blank"),
        pytest.param("a" * 90, "no think tags", "aaa\\.\\.\\.'", id="no tags in a long text"),
        pytest.param("<think>Two and", "chain of thought never closed", "</think>", id="unclosed"),
        pytest.param(
            "<|begin_of_thought|>Two",
            "chain of thought never closed",
            "end_of_thought",
            id="unclosed thought",
        ),
        pytest.param(R1 + R1, "think tags more than once", "2 x <think>, 2 x </think>", id="twice"),
        pytest.param("<think>a<think>b</think>c", "think tags more than once", "2 x <think>", id="opened twice"),
        pytest.param("a</think>b</think>c", "think tags more than once", "2 x </think>", id="closed twice"),
        pytest.param(
            "<think>use <|begin_of_thought|></think>c",
            "think tags more than once",
            "1 x <\\|begin",
            id="two families",
        ),
        pytest.param("a</think>b<think>", "think tags out of order", "before <think>", id="reversed"),
        pytest.param("Sure! " + R1, "text before the chain of thought", "'Sure!'", id="text first"),
        pytest.param("<think>\n\n</think>4", "empty chain of thought", "blank", id="empty cot"),
        pytest.param("</think>4", "empty chain of thought", "blank", id="empty cot, opened by the prompt"),
        pytest.param("<think>a</think> \n", "empty answer", "blank", id="empty answer"),
        pytest.param(
            "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|> <|end_of_solution|>",
            "empty answer",
            "blank",
            id="empty solution",
        ),
        pytest.param(
            "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>4",
            "answer never closed",
            "without <\\|end_of_solution",
            id="unclosed solution",
        ),
        pytest.param(
            "<|begin_of_thought|>a<|end_of_thought|>b<|begin_of_solution|>4<|end_of_solution|>",
            "solution tags out of place",
            "text outside",
            id="text between thought and solution",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(text: str, reason: str, detail: str) -> None:
    with pytest.raises(Unusable, match=detail) as caught:
        split_reasoning(text)
    assert caught.value.reason == reason


QUESTION = "A train covers 150 km in 2.5 hours. What is its speed in km/h?"
COT = "Speed is distance over time.\n\n150 / 2.5 = 60, so 60 km/h."
ANSWER = "The train travels at $\\boxed{60}$ km/h."
THINK = f"<think>\n{COT}\n</think>\n\n{ANSWER}"
USER_TURN = {"role": "user", "content": QUESTION}
COLUMNS = {"problem": QUESTION, "cot": COT, "answer": ANSWER, "gold": 60, "finished": True}
S1K = {"question": QUESTION, "cot": None, "thinking_trajectories": [COT], "attempt": ANSWER, "solution": "60"}
SYNTHETIC_1 = {"prompt": QUESTION, "llm_response": THINK}
NEMOTRON = {"input": [USER_TURN], "output": THINK, "reasoning": "on"}
OPENR1_MATH: dict[str, Any] = {
    "problem": QUESTION,
    "answer": "60",
    "generations": ["<think>75?</think>75", THINK, THINK + " Later."],
    "correctness_math_verify": [False, True, True],
}
GSM8K = {"question": QUESTION, "answer": "The speed is 150/2.5=<<150/2.5=60>>60 km/h.\n#### 60"}


def read(row: dict[str, Any], **source: Any) -> Trace | Refusal:
    return parse(row, bind(TraceSource(path="toy.jsonl", **source), row, "toy.jsonl:1"), "toy.jsonl:1")


def refusal(row: dict[str, Any], **source: Any) -> tuple[str, str]:
    result = read(row, **source)
    assert isinstance(result, Refusal)
    assert result.place == "toy.jsonl:1"
    return result.reason, result.detail


def trace(*messages: dict[str, str], gold: str | None = None) -> Trace:
    return Trace(messages, COT, ANSWER, gold, "toy.jsonl:1")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_may_stand_under_a_key(key: str) -> None:
    assert read({"messages": [USER_TURN, {"role": "assistant", "content": ANSWER, key: COT}]}) == trace(USER_TURN)


def test_an_empty_reasoning_key_beside_think_tags_is_not_a_second_chain_of_thought() -> None:
    turn = {"role": "assistant", "content": THINK, "reasoning_content": ""}
    assert read({"messages": [USER_TURN, turn]}) == trace(USER_TURN)


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        pytest.param(60, "60", id="int"),
        pytest.param(60.0, "60", id="whole float"),
        pytest.param(0.1, "0.1", id="float"),
        pytest.param(" 60 ", "60", id="text"),
        pytest.param(["60"], "60", id="list of one"),
        pytest.param(None, None, id="null"),
        pytest.param("", None, id="blank"),
        pytest.param(float("nan"), None, id="nan, as pandas writes null"),
    ],
)
def test_reference_answers_of_mixed_types(value: object, gold: str | None) -> None:
    assert read(COLUMNS | {"gold": value}) == trace(USER_TURN, gold=gold)


def test_a_number_is_a_good_answer() -> None:
    result = read({"problem": QUESTION, "cot": COT, "answer": 60.0})
    assert result == Trace((USER_TURN,), COT, "60", None, "toy.jsonl:1")


def test_alpaca_input_belongs_to_the_prompt() -> None:
    row = {"instruction": "Answer in km/h.", "input": QUESTION, "cot": COT, "output": ANSWER}
    assert read(row) == trace({"role": "user", "content": f"Answer in km/h.\n\n{QUESTION}"})


def test_trajectories_in_a_list_are_joined_by_line() -> None:
    assert read(S1K | {"thinking_trajectories": COT.split("\n")}) == trace(USER_TURN, gold="60")


def test_generations_fall_back_on_the_judging_model() -> None:
    row = OPENR1_MATH | {"correctness_math_verify": [False] * 3, "correctness_llama": [False, True, False]}
    assert read(row) == trace(USER_TURN, gold="60")


def test_an_incomplete_generation_is_passed_over() -> None:
    row = OPENR1_MATH | {
        "generations": ["<think>\nIt is 60, but", THINK],
        "correctness_math_verify": [True, True],
        "is_reasoning_complete": [False, True],
    }
    assert read(row) == trace(USER_TURN, gold="60")


def test_think_tags_in_the_prompt_do_no_harm() -> None:
    question = {"role": "user", "content": "What do <think> and </think> mean?"}
    assert read(COLUMNS | {"problem": question["content"]}) == trace(question, gold="60")
    assert read({"messages": [question, {"role": "assistant", "content": THINK}]}) == trace(question)


MISTYPED = "missing or mistyped column"
TWICE = "think tags more than once"


def with_reply(reply: object, **keys: str) -> dict[str, Any]:
    return {"messages": [USER_TURN, {"role": "assistant", "content": reply, **keys}]}


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        pytest.param(COLUMNS | {"finished": False}, "chain of thought never closed", "finished", id="unfinished"),
        pytest.param(COLUMNS | {"cot": f"{COT}</think>"}, TWICE, "</think> in 'cot'", id="tag in cot"),
        pytest.param(
            COLUMNS | {"answer": "<|begin_of_thought|>4"},
            TWICE,
            "<|begin_of_thought|> in 'answer'",
            id="tag in answer",
        ),
        pytest.param(COLUMNS | {"cot": " \n"}, "empty chain of thought", "blank", id="blank cot"),
        pytest.param(COLUMNS | {"answer": ""}, "empty answer", "blank", id="blank answer"),
        pytest.param(COLUMNS | {"problem": "\t"}, "empty prompt", "no user turn", id="blank prompt"),
        pytest.param(COLUMNS | {"problem": None}, MISTYPED, "'problem' is missing or null", id="null prompt"),
        pytest.param(COLUMNS | {"cot": 3}, MISTYPED, "'cot' is int ('3'), text", id="number for cot"),
        pytest.param(COLUMNS | {"answer": {"a": 1}}, MISTYPED, "'answer' is dict", id="object for answer"),
        pytest.param(COLUMNS | {"gold": ["6", "60"]}, MISTYPED, "is list", id="two gold answers"),
        pytest.param(COLUMNS | {"cot": "\ud83d"}, "not valid UTF-8", "surrogate", id="half a surrogate pair"),
        pytest.param(S1K | {"thinking_trajectories": []}, "empty chain of thought", "blank", id="no trajectory"),
        pytest.param(S1K | {"thinking_trajectories": [1]}, MISTYPED, "is int", id="number for trajectory"),
        pytest.param(SYNTHETIC_1 | {"llm_response": ANSWER}, "no think tags", "The train", id="plain response"),
        pytest.param(SYNTHETIC_1 | {"llm_response": None}, MISTYPED, "llm_response", id="null response"),
        pytest.param(
            NEMOTRON | {"reasoning": "off", "output": ANSWER},
            "reasoning switched off",
            "'reasoning'",
            id="switch off",
        ),
        pytest.param(NEMOTRON | {"input": []}, "empty prompt", "no user turn", id="no turns in the input"),
        pytest.param(
            OPENR1_MATH | {"correctness_math_verify": [False] * 3},
            "no generation verified correct",
            "3",
            id="none right",
        ),
        pytest.param(
            OPENR1_MATH | {"correctness_math_verify": True}, MISTYPED, "is bool", id="one verdict for the row"
        ),
        pytest.param(OPENR1_MATH | {"generations": THINK}, MISTYPED, "is str", id="one generation as text"),
        pytest.param({"messages": []}, "no assistant turn last", "missing", id="no turns"),
        pytest.param({"messages": [USER_TURN]}, "no assistant turn last", "'user'", id="user last"),
        pytest.param({"messages": ["hello"]}, MISTYPED, "is str", id="turn as text"),
        pytest.param({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role", "'narrator'", id="role"),
        pytest.param({"messages": [{"content": "x"}]}, "unknown role", "None", id="no role"),
        pytest.param(with_reply(None), MISTYPED, "'messages[].content' is missing", id="null content"),
        pytest.param(with_reply([{"type": "text"}]), MISTYPED, "is list", id="content in parts"),
        pytest.param(with_reply(ANSWER), "no think tags", "The train", id="no tags"),
        pytest.param(with_reply("<think>Let me"), "chain of thought never closed", "</think>", id="unclosed"),
        pytest.param(with_reply(THINK + THINK), TWICE, "2 x <think>", id="tags twice"),
        pytest.param(with_reply(THINK, reasoning_content=COT), TWICE, "'content'", id="tags and key"),
        pytest.param(with_reply(ANSWER, thinking=f"<think>{COT}"), TWICE, "'reasoning'", id="tag under the key"),
        pytest.param(with_reply(ANSWER, reasoning=" "), "empty chain of thought", "blank", id="blank key"),
        pytest.param(with_reply(""), "no think tags", "''", id="blank reply"),
        pytest.param(GSM8K | {"answer": "#### "}, "empty chain of thought", "blank", id="no worked solution"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: dict[str, Any], reason: str, detail: str) -> None:
    found_reason, found_detail = refusal(row)
    assert (found_reason, detail in found_detail) == (reason, True), found_detail


def test_a_worked_solution_without_its_result_is_refused() -> None:
    assert refusal({"question": QUESTION, "answer": "60 km/h"}, format="gsm8k") == (
        "no result after ####",
        "'answer' is '60 km/h'",
    )
