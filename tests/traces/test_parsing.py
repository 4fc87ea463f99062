import sys
from decimal import Decimal
from typing import Any

import pytest

from leadspan.traces.files import Record
from leadspan.traces.formats import detect, parse
from leadspan.traces.records import Refusal, Trace, Unusable
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import split_reasoning

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
        pytest.param("<think>a</think> \u200b\n\ufeff", "empty answer", "blank", id="answer without width"),
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
    assert caught.value.args[0] == reason


UNCLOSED = "chain of thought never closed"
TOOLS = "tools or media, which no trace can carry"
QUESTION = "A train covers 150 km in 2.5 hours. What is its speed in km/h?"
COT = "Speed is distance over time.\n\n150 / 2.5 = 60, so 60 km/h."
ANSWER = "The train travels at $\\boxed{60}$ km/h."
THINK = f"<think>\n{COT}\n</think>\n\n{ANSWER}"
USER_TURN = {"role": "user", "content": QUESTION}
REPLY = [{"role": "assistant", "content": THINK}]
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
    (layout,) = detect(TraceSource(path="toy.jsonl", **source), [Record(row, "toy.jsonl:1")])
    return parse(row, layout, "toy.jsonl:1")


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


def test_content_may_come_in_parts() -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "A train covers"}, "150 km."]}
    plain = {"role": "assistant", "content": [{"type": "text", "text": THINK}]}
    thinking = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": COT}, {"type": "text", "text": ANSWER}],
    }
    nested = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": COT}]},
            {"text": ANSWER, "type": "text"},
        ],
    }
    gemini = {"role": "model", "parts": [{"text": COT, "thought": True}, {"text": ANSWER, "thought": None}]}
    for reply in (plain, thinking, nested, gemini):
        assert read({"messages": [user, reply]}) == trace({"role": "user", "content": "A train covers\n150 km."})


def test_the_chain_of_thought_of_an_earlier_turn_goes_to_the_template() -> None:
    earlier = {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."}
    quiet = {"role": "assistant", "content": "Hello!", "reasoning_content": None, "tool_calls": []}
    hello = {"role": "user", "content": "Hi"}
    assert read({"messages": [hello, earlier, USER_TURN, *REPLY]}) == trace(hello, earlier, USER_TURN)
    assert read({"messages": [hello, quiet, USER_TURN, *REPLY], "tools": "[]"}) == trace(
        hello, {"role": "assistant", "content": "Hello!"}, USER_TURN
    )


def test_developer_and_tool_turns_are_passed_on() -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        USER_TURN,
        {"role": "assistant", "content": "I look it up."},
        {"role": "tool", "content": "60"},
    ]
    assert read({"messages": [*turns, *REPLY]}) == trace(*turns)


def test_the_name_of_a_speaker_is_passed_on() -> None:
    named, nameless = {**USER_TURN, "name": "Ada"}, {"role": "assistant", "content": "Go on.", "name": None}
    turns = [named, nameless, {**USER_TURN, "name": " "}]
    assert read({"messages": [*turns, *REPLY]}) == trace(named, {"role": "assistant", "content": "Go on."}, USER_TURN)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        pytest.param(["7", "seven"], "a list of several", id="several spellings"),
        pytest.param({"value": "7"}, "an object", id="object"),
        pytest.param([{"value": "7"}], "an object", id="object in a list"),
        pytest.param([], "missing", id="empty list"),
        pytest.param("  ", "missing", id="blank"),
        pytest.param(True, "true or false", id="true"),
        pytest.param(float("inf"), "neither text nor a number", id="infinite"),
        pytest.param("\ud83d", "not valid UTF-8", id="half a surrogate pair"),
    ],
)
def test_a_reference_answer_never_refuses_a_record(value: object, fault: str) -> None:
    result = read(COLUMNS | {"gold": value})
    assert result == trace(USER_TURN) and isinstance(result, Trace)
    assert result.gold_fault == fault
    conversation = read({"messages": [USER_TURN, *REPLY], "answer": value})
    assert conversation == trace(USER_TURN) and isinstance(conversation, Trace) and conversation.gold_fault == fault


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"is_reasoning_complete": "yes"}, id="complete as text"),
        pytest.param({"correctness_llama": True}, id="one judgement"),
        pytest.param({"is_reasoning_complete": [True]}, id="too few"),
        pytest.param({"finish_reasons": "stop"}, id="one reason"),
    ],
)
def test_an_optional_column_of_another_type_is_passed_over(flags: dict[str, Any]) -> None:
    assert read(OPENR1_MATH | flags) == trace(USER_TURN, gold="60")


def test_a_generation_that_was_cut_off_is_passed_over() -> None:
    result = read(OPENR1_MATH | {"finish_reasons": ["stop", "length", "stop"]})
    assert isinstance(result, Trace) and result.answer.endswith("Later.")


@pytest.mark.parametrize(
    "flag",
    [
        *[{"weight": value} for value in (0, 0.0, "0", "0.0", False)],
        *[{"train": value} for value in (False, 0, 0.0, "False", " no")],
        {"training": "false"},
    ],
    ids=str,
)
def test_a_reply_that_is_not_to_be_learnt_is_refused(flag: dict[str, object]) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": THINK, **flag}]
    refused = read({"messages": turns})
    assert isinstance(refused, Refusal) and refused.reason == "turn that is not to be learnt"
    assert isinstance(read({"messages": [turns[0], {**turns[1], next(iter(flag)): 1}]}), Trace)
    earlier = [turns[0], {"role": "assistant", "content": "four", **flag}, turns[0], {**turns[1], next(iter(flag)): 1}]
    assert isinstance(read({"messages": earlier}), Trace)


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", True, "True", None, float("nan")], ids=repr)
def test_a_reply_of_weight_1_or_of_none_is_learnt(value: object) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": THINK, "weight": value}]
    assert isinstance(read({"messages": turns}), Trace)


@pytest.mark.parametrize("value", [0.5, 2, -1, "0.5", "high", "", [1], {"cot": 1}], ids=repr)
def test_a_weight_that_no_trace_can_carry_is_refused(value: object) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": THINK, "weight": value}]
    refused = read({"messages": turns})
    assert isinstance(refused, Refusal) and refused.reason == "weight that is neither 0 nor 1"
    assert refused.detail == f"the last turn of 'messages' has 'weight' {value!r}"


def test_what_is_nested_without_end_is_refused() -> None:
    content: object = "deep"
    for _ in range(sys.getrecursionlimit()):
        content = [content]
    turn = {"role": "assistant", "content": content}
    assert refusal({"messages": [USER_TURN, turn]})[0] == "nested too deeply"
    assert refusal(COLUMNS | {"answer": content})[0] == MISTYPED


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
        pytest.param(Decimal("60.00"), "60", id="decimal of a table"),
        pytest.param(
            Decimal("-1.2345678901234567890123456789012340"), "-1.234567890123456789012345678901234", id="long"
        ),
        pytest.param(Decimal("1E+2"), "100", id="decimal with an exponent"),
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
        pytest.param(COLUMNS | {"problem": "\u200b"}, "empty prompt", "no user turn", id="prompt without width"),
        pytest.param(COLUMNS | {"problem": None}, MISTYPED, "'problem' is missing or null", id="null prompt"),
        pytest.param(COLUMNS | {"cot": 3}, MISTYPED, "'cot' is int (3), text", id="number for cot"),
        pytest.param(COLUMNS | {"answer": {"a": 1}}, MISTYPED, "'answer' is dict", id="object for answer"),
        pytest.param(COLUMNS | {"answer": True}, MISTYPED, "'answer' is bool (True)", id="true for answer"),
        pytest.param(COLUMNS | {"answer": float("nan")}, MISTYPED, "'answer' is missing", id="NaN for answer"),
        pytest.param(COLUMNS | {"answer": float("inf")}, MISTYPED, "'answer' is float (inf)", id="infinite answer"),
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
        pytest.param(with_reply([{"type": "text"}]), MISTYPED, "is missing", id="part without text"),
        pytest.param(with_reply([1]), MISTYPED, "is int (1)", id="part that is a number"),
        pytest.param(
            with_reply([{"type": "image_url", "image_url": "x"}, {"type": "text", "text": THINK}]),
            "content that is no text",
            "'image_url'",
            id="image in a reply",
        ),
        pytest.param(
            with_reply([{"type": "text", "text": "Hm."}, {"type": "thinking", "thinking": COT}]),
            "text before the chain of thought",
            "'Hm.'",
            id="text part before the thinking part",
        ),
        pytest.param(
            with_reply([{"type": "thinking", "thinking": COT}, {"type": "text", "text": ANSWER}], reasoning=COT),
            TWICE,
            "thinking part",
            id="thinking part and key",
        ),
        pytest.param(with_reply([{"type": "redacted_thinking"}]), "content that is no text", "redacted", id="redacted"),
        pytest.param(with_reply(ANSWER), "no think tags", "The train", id="no tags"),
        pytest.param(with_reply("<think>Let me"), "chain of thought never closed", "</think>", id="unclosed"),
        pytest.param(with_reply(THINK + THINK), TWICE, "2 x <think>", id="tags twice"),
        pytest.param(with_reply(THINK, reasoning_content=COT), TWICE, "'content'", id="tags and key"),
        pytest.param(with_reply(ANSWER, thinking=f"<think>{COT}"), TWICE, "'reasoning'", id="tag under the key"),
        pytest.param(with_reply(ANSWER, reasoning=" "), "empty chain of thought", "blank", id="blank key"),
        pytest.param(with_reply(""), "no think tags", "''", id="blank reply"),
        pytest.param(with_reply(THINK, finish_reason="length"), UNCLOSED, "'length'", id="reply cut off"),
        pytest.param(SYNTHETIC_1 | {"finish_reason": "LENGTH"}, UNCLOSED, "'LENGTH'", id="response cut off"),
        pytest.param(SYNTHETIC_1 | {"stop_reason": ["max_tokens"]}, UNCLOSED, "'max_tokens'", id="reason in a list"),
        *(
            pytest.param(SYNTHETIC_1 | {"finish_reason": why}, UNCLOSED, f"'{why}'", id=why)
            for why in ("content_filter", "abort", "error", "incomplete", "tool_calls", "max_output_tokens", "SAFETY")
        ),
        *(
            pytest.param(COLUMNS | {name: value}, UNCLOSED, f"'{name}'", id=f"{name} {value}")
            for name, value in (
                ("truncated", 1),
                ("is_truncated", "true"),
                ("completed", "False"),
                ("status", "incomplete"),
            )
        ),
        *(
            pytest.param(COLUMNS | {name: value}, "a part of the question in a column of its own", name, id=name)
            for name, value in (
                ("history", [["Hi", "Hello"]]),
                ("context", "Trains."),
                ("options", {"A": "50", "B": "60"}),
            )
        ),
        pytest.param(COLUMNS | {"truncated": True}, UNCLOSED, "'truncated' is true", id="truncated"),
        pytest.param(
            OPENR1_MATH | {"finish_reasons": ["stop", "length", "length"]},
            "no generation verified correct",
            "complete",
            id="right generations cut off",
        ),
        pytest.param(
            OPENR1_MATH | {"correctness_math_verify": ["True"] * 3},
            "no generation verified correct",
            "3",
            id="verdicts as text",
        ),
        pytest.param(
            {"messages": [USER_TURN, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, *REPLY]},
            TOOLS,
            "a turn of 'messages' has 'tool_calls'",
            id="tool calls without content",
        ),
        pytest.param({"tools": [{"name": "add"}], "messages": [USER_TURN, *REPLY]}, TOOLS, "'tools'", id="tools"),
        pytest.param(COLUMNS | {"functions": '[{"name": "add"}]'}, TOOLS, "'functions'", id="functions as JSON"),
        pytest.param(SYNTHETIC_1 | {"images": ["a.png"]}, TOOLS, "the record has 'images'", id="images"),
        pytest.param(
            {"messages": [USER_TURN | {"reasoning": "Hm."}, *REPLY]}, MISTYPED, "by the user", id="thinking user"
        ),
        pytest.param(GSM8K | {"answer": "#### "}, "empty chain of thought", "blank", id="no worked solution"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: dict[str, Any], reason: str, detail: str) -> None:
    found_reason, found_detail = refusal(row)
    assert (found_reason, detail in found_detail) == (reason, True), found_detail


@pytest.mark.parametrize("reason", ["stop", "end_turn", "eos", "STOP", "completed", 151645, None])
def test_a_generation_that_ended_by_itself_is_read(reason: object) -> None:
    assert read(SYNTHETIC_1 | {"finish_reason": reason, "status": "done"}) == trace(USER_TURN)


def test_columns_whose_text_the_prompt_repeats_are_no_loss() -> None:
    row = COLUMNS | {"context": "A train covers 150 km", "choices": ["", "km/h"], "history": [], "options": None}
    assert read(row) == trace(USER_TURN, gold="60")


def test_a_worked_solution_without_its_result_is_refused() -> None:
    assert refusal({"question": QUESTION, "answer": "60 km/h"}, format="gsm8k") == (
        "no result after ####",
        "'answer' is '60 km/h'",
    )


def test_a_byte_order_mark_before_a_text_is_dropped() -> None:
    marked = {"problem": "\ufeff" + QUESTION, "cot": "\ufeff" + COT, "answer": ANSWER}
    assert read(marked) == read({"problem": QUESTION, "cot": COT, "answer": ANSWER})
    assert isinstance(read(with_reply("\ufeff" + THINK)), Trace)


@pytest.mark.parametrize("part", ["prompt", "cot", "answer"])
def test_nul_characters_are_no_text(part: str) -> None:
    row = {"prompt": QUESTION, "cot": COT, "answer": ANSWER}
    refused = read(row | {part: row[part] + "\0"})
    assert isinstance(refused, Refusal) and refused.reason == "NUL character in the text"


def test_whole_numbers_of_any_length_are_answers() -> None:
    long = int("9" * 4000)
    trace = read({"prompt": QUESTION, "cot": COT, "answer": long, "gold": long})
    assert isinstance(trace, Trace) and trace.answer == trace.gold == "9" * 4000
