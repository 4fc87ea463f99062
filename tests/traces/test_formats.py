from typing import Any

import pytest
from pydantic import ValidationError

from leadspan.errors import DataError
from leadspan.traces.files import Record
from leadspan.traces.formats import FORMATS, detect, parse
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource

QUESTION = "A train covers 150 km in 2.5 hours. What is its speed in km/h?"
COT = "Speed is distance over time.\n\n150 / 2.5 = 60, so 60 km/h."
ANSWER = "The train travels at $\\boxed{60}$ km/h."
THINK = f"<think>\n{COT}\n</think>\n\n{ANSWER}"
THOUGHT = (
    f"<|begin_of_thought|>\n\n{COT}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{ANSWER}\n\n<|end_of_solution|>"
)
SYSTEM = "Put your reasoning between <|begin_of_thought|> and <|end_of_thought|>."
USER_TURN = {"role": "user", "content": QUESTION}
SYSTEM_TURN = {"role": "system", "content": SYSTEM}

SKY_T1 = {
    "system": SYSTEM,
    "conversations": [{"from": "user", "value": QUESTION}, {"from": "assistant", "value": THOUGHT}],
}
OPENTHOUGHTS_METADATA = {
    "problem": QUESTION,
    "deepseek_reasoning": COT,
    "deepseek_solution": ANSWER,
    "ground_truth_solution": "60",
    "domain": "math",
    "source": "numina_math",
    "test_cases": None,
    "starter_code": None,
}
SYNTHETIC_1 = {
    "response_id": "vfm_41_r2",
    "problem_id": "vfm_41",
    "task_type": "verifiable_math",
    "prompt": QUESTION,
    "gold_standard_solution": "60",
    "llm_response": THINK,
    "verification_info": '{"ground_truth": "60"}',
    "score": 1.0,
    "metadata": "{}",
}
NEMOTRON = {
    "input": [USER_TURN],
    "output": THINK,
    "category": "math",
    "license": "CC BY 4.0",
    "reasoning": "on",
    "generator": "DeepSeek-R1",
    "used_in_training": "yes",
    "version": "v1.1",
    "system_prompt": "detailed thinking on",
}
OPENR1_MATH: dict[str, Any] = {
    "problem": QUESTION,
    "solution": "Divide: $150 / 2.5 = 60$.",
    "answer": "60",
    "problem_type": "Algebra",
    "source": "cn_k12",
    "uuid": "0f1e",
    "is_reasoning_complete": [True, True, True],
    "generations": ["<think>\n150 / 2 = 75.\n</think>\n\n$\\boxed{75}$", THINK, THINK + " Later."],
    "correctness_math_verify": [False, True, True],
    "correctness_llama": None,
    "finish_reasons": None,
    "correctness_count": 2,
    "messages": [USER_TURN, {"role": "assistant", "content": THINK + " As a message."}],
}
S1K = {
    "solution": "60",
    "question": QUESTION,
    "cot_type": "math",
    "source_type": "AI-MO/NuminaMath-CoT/cn_k12",
    "metadata": "{}",
    "cot": None,
    "thinking_trajectories": [COT],
    "attempt": ANSWER,
}
S1K_1_1 = {
    "solution": "60",
    "question": QUESTION,
    "cot_type": "math",
    "gemini_thinking_trajectory": "Sixty.",
    "gemini_attempt": "60",
    "deepseek_thinking_trajectory": COT,
    "deepseek_attempt": ANSWER,
}
MESSAGES = {
    "messages": [
        SYSTEM_TURN,
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>A greeting.</think>Hello!"},
        USER_TURN,
        {"role": "assistant", "content": THINK},
    ]
}
MULTI_TURN = tuple(MESSAGES["messages"][:4])
CHATML_KEY = {
    "messages": [
        {"role": "user", "content": QUESTION, "reasoning_content": None},
        {"role": "assistant", "content": ANSWER, "reasoning_content": COT},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": THINK}]}
COLUMNS = {"problem": QUESTION, "cot": COT, "answer": ANSWER, "gold": 60, "finished": True}
GSM8K = {
    "question": QUESTION,
    "answer": "Speed is distance over time.\nThe speed is 150/2.5=<<150/2.5=60>>60 km/h.\n#### 60",
}


def read(row: dict[str, Any], **source: Any) -> tuple[str, Trace | Refusal]:
    (layout,) = detect(TraceSource(path="toy.jsonl", **source), [Record(row, "toy.jsonl:1")])
    return layout.form.name, parse(row, layout, "toy.jsonl:1")


def trace(*messages: dict[str, str], gold: str | None = None) -> Trace:
    return Trace(messages, COT, ANSWER, gold, "toy.jsonl:1")


NEMOTRON_TURNS = ({"role": "system", "content": "detailed thinking on"}, USER_TURN)
ACCEPTED = [
    pytest.param(SKY_T1, "openthoughts", trace(SYSTEM_TURN, USER_TURN), id="OpenThoughts-114k, Sky-T1, Stratos"),
    pytest.param(OPENTHOUGHTS_METADATA, "openthoughts", trace(USER_TURN, gold="60"), id="OpenThoughts metadata"),
    pytest.param(SYNTHETIC_1, "synthetic_1", trace(USER_TURN, gold="60"), id="SYNTHETIC-1"),
    pytest.param(NEMOTRON, "llama_nemotron", trace(*NEMOTRON_TURNS), id="Llama-Nemotron, list"),
    pytest.param(
        NEMOTRON | {"input": QUESTION, "system_prompt": None},
        "llama_nemotron",
        trace(USER_TURN),
        id="Nemotron, text",
    ),
    pytest.param(OPENR1_MATH, "openr1_math", trace(USER_TURN, gold="60"), id="OpenR1-Math"),
    pytest.param(S1K, "s1k", trace(USER_TURN, gold="60"), id="s1K"),
    pytest.param(S1K_1_1, "s1k", trace(USER_TURN, gold="60"), id="s1K-1.1"),
    pytest.param(MESSAGES, "messages", trace(*MULTI_TURN), id="messages, think tags"),
    pytest.param(CHATML_KEY, "messages", trace(USER_TURN), id="messages, reasoning_content"),
    pytest.param(SHAREGPT, "messages", trace(USER_TURN), id="ShareGPT"),
    pytest.param(COLUMNS, "columns", trace(USER_TURN, gold="60"), id="columns"),
    pytest.param(
        {"prompt": QUESTION, "completion": THINK}, "prompt_response", trace(USER_TURN), id="prompt and completion"
    ),
    pytest.param(
        {"prompt": [USER_TURN], "completion": [{"role": "assistant", "content": THINK}]},
        "prompt_response",
        trace(USER_TURN),
        id="turns as prompt and completion",
    ),
    pytest.param(
        {"instruction": "Solve it.", "input": QUESTION, "output": THINK},
        "prompt_response",
        trace({"role": "user", "content": f"Solve it.\n\n{QUESTION}"}),
        id="Alpaca",
    ),
    pytest.param(
        {"instruction": QUESTION, "input": float("nan"), "output": THINK, "system": ""},
        "prompt_response",
        trace(USER_TURN),
        id="Alpaca, input missing in pandas",
    ),
    pytest.param(
        {"question": QUESTION, "answer": THINK}, "prompt_response", trace(USER_TURN), id="question and answer"
    ),
    pytest.param(
        {"prompt": QUESTION, "response": THINK}, "prompt_response", trace(USER_TURN), id="prompt and response"
    ),
    pytest.param(
        {"problem": QUESTION, "solution": "By hand.", "generated_solution": THINK, "expected_answer": "60"},
        "prompt_response",
        trace(USER_TURN, gold="60"),
        id="OpenMathReasoning",
    ),
    pytest.param(
        {"problem": QUESTION, "solution": THINK, "answer": "60"},
        "prompt_response",
        trace(USER_TURN, gold="60"),
        id="thinking in the solution, result beside it",
    ),
    *(
        pytest.param(
            {"prompt": QUESTION, "response": THINK, "thinking": switch},
            "prompt_response",
            trace(USER_TURN),
            id=f"switch {switch}",
        )
        for switch in ("on", "False", True)
    ),
    pytest.param(
        {"messages": [SYSTEM_TURN, USER_TURN], "reasoning": COT, "answer": ANSWER, "model": "R1"},
        "columns",
        trace(SYSTEM_TURN, USER_TURN),
        id="turns of the prompt, thinking and answer beside them",
    ),
    pytest.param(
        {"Question": QUESTION, "Complex_CoT": COT, "Response": ANSWER}, "columns", trace(USER_TURN), id="medical-o1"
    ),
    pytest.param(
        {"input": QUESTION, "reasoning_content": COT, "content": ANSWER, "score": 10},
        "columns",
        trace(USER_TURN),
        id="what DeepSeek's API returns",
    ),
    pytest.param(
        {"query": QUESTION, "rationale": COT, "response": ANSWER}, "columns", trace(USER_TURN), id="query and rationale"
    ),
    pytest.param(
        {"conversation": [USER_TURN, {"role": "assistant", "content": THINK}]},
        "messages",
        trace(USER_TURN),
        id="conversation",
    ),
    pytest.param(
        {"conversations": {"from": ["human", "gpt"], "value": [QUESTION, THINK]}},
        "messages",
        trace(USER_TURN),
        id="ShareGPT, one list for each key",
    ),
]


@pytest.mark.parametrize(("row", "name", "expected"), ACCEPTED)
def test_layouts_are_told_apart_and_read(row: dict[str, Any], name: str, expected: Trace) -> None:
    assert read(row) == (name, expected)


@pytest.mark.parametrize(("row", "name", "expected"), ACCEPTED)
def test_a_named_format_reads_the_same(row: dict[str, Any], name: str, expected: Trace) -> None:
    assert read(row, format=name) == (name, expected)


def test_gsm8k_loses_its_calculator_annotations() -> None:
    cot = "Speed is distance over time.\nThe speed is 150/2.5=60 km/h."
    assert read(GSM8K) == ("gsm8k", Trace((USER_TURN,), cot, "60", "60", "toy.jsonl:1"))


def test_every_row_of_the_table_is_covered() -> None:
    names = {name for form in FORMATS for name in (form.name, *form.also)}
    assert names == {param.values[1] for param in ACCEPTED} | {"gsm8k", "bespoke_stratos"}


def test_bespoke_stratos_names_the_layout_of_openthoughts() -> None:
    assert read(SKY_T1, format="bespoke_stratos") == ("openthoughts", trace(SYSTEM_TURN, USER_TURN))


def test_a_conversation_that_starts_with_a_system_turn_gets_no_second_one() -> None:
    turns = [{"from": "system", "value": "Be brief."}, *SHAREGPT["conversations"]]
    _, result = read({"system": SYSTEM, "conversations": turns})
    assert result == trace({"role": "system", "content": "Be brief."}, USER_TURN)


@pytest.mark.parametrize("prompt", ["prompt", "problem", "question", "instruction"])
@pytest.mark.parametrize("cot", ["cot", "reasoning", "thinking", "reasoning_content", "chain_of_thought"])
@pytest.mark.parametrize("answer", ["answer", "response", "solution", "final_answer", "output"])
def test_usual_column_names(prompt: str, cot: str, answer: str) -> None:
    assert read({prompt: QUESTION, cot: COT, answer: ANSWER}) == ("columns", trace(USER_TURN))


@pytest.mark.parametrize("gold", ["gold", "ground_truth", "reference_answer"])
def test_usual_names_of_the_reference_answer(gold: str) -> None:
    assert read({"prompt": QUESTION, "cot": COT, "answer": ANSWER, gold: "60"})[1] == trace(USER_TURN, gold="60")


def test_columns_can_be_mapped() -> None:
    row = {"Question": QUESTION, "Complex_CoT": COT, "Response": ANSWER, "ref": "60", "role": "Be brief."}
    columns = {
        "prompt": "Question",
        "cot": "Complex_CoT",
        "answer": "Response",
        "gold": "ref",
        "system": "role",
    }
    expected = trace({"role": "system", "content": "Be brief."}, USER_TURN, gold="60")
    assert read(row, columns=columns) == ("columns", expected)


def test_a_response_or_a_conversation_can_be_mapped() -> None:
    row = {"q": QUESTION, "r": THINK, "cot": "not this", "ref": 60}
    assert read(row, columns={"prompt": "q", "response": "r", "gold": "ref"}) == (
        "prompt_response",
        trace(USER_TURN, gold="60"),
    )
    chat = {"chat": [USER_TURN, {"role": "assistant", "content": THINK}], "who": "Be brief."}
    expected = trace({"role": "system", "content": "Be brief."}, USER_TURN)
    assert read(chat, columns={"conversation": "chat", "system": "who"}) == ("messages", expected)
    assert read(MESSAGES | {"ref": 60}, columns={"gold": "ref"}) == ("messages", trace(*MULTI_TURN, gold="60"))


@pytest.mark.parametrize(
    "tags",
    [
        ("[THINK]", "[/THINK]"),
        ("<thought>", "</thought>"),
        ("<seed:think>", "</seed:think>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_think_tags_of_the_source_can_be_named(tags: tuple[str, str]) -> None:
    own = {"think_open": tags[0], "think_close": tags[1]}
    text = f"{tags[0]}{COT}{tags[1]}{ANSWER}"
    for row in (
        {"messages": [USER_TURN, {"role": "assistant", "content": text}]},
        {"prompt": QUESTION, "response": text},
    ):
        assert read(row, **own)[1] == trace(USER_TURN)
    doubled = {"prompt": QUESTION, "response": text.replace(COT, f"<think>{COT}")}
    refused = read(doubled, **own)[1]
    assert isinstance(refused, Refusal) and refused.reason == "think tags more than once"
    unnamed = read({"messages": [USER_TURN, {"role": "assistant", "content": text}]})[1]
    assert isinstance(unnamed, Refusal) and unnamed.reason == "no think tags"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param({"think_open": "<a>"}, "belong together", id="one tag"),
        pytest.param({"think_open": "<a>", "think_close": "<a>"}, "must differ", id="equal tags"),
        pytest.param({"columns": {"response": "a", "cot": "b"}}, "response holds what cot", id="response and cot"),
        pytest.param({"columns": {"conversation": "a", "prompt": "b"}}, "conversation holds", id="turns and prompt"),
        pytest.param({"columns": {"cot": "a", "answer": "a", "gold": "a"}}, "cot and answer are all 'a'", id="twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TraceSource(path="toy.jsonl", **source)


def test_a_prompt_column_may_hold_turns() -> None:
    row = {"messages": [SYSTEM_TURN, USER_TURN], "reasoning": COT, "answer": ANSWER}
    assert read(row, columns={"prompt": "messages"}) == ("columns", trace(SYSTEM_TURN, USER_TURN))


def test_a_column_of_nulls_is_passed_over_for_one_with_values() -> None:
    assert read({"prompt": QUESTION, "cot": None, "reasoning": COT, "answer": ANSWER})[1] == trace(USER_TURN)


def test_unknown_columns_are_answered_with_what_each_format_needs() -> None:
    with pytest.raises(DataError) as caught:
        read({"id": 1, "problem": QUESTION, "answer": "60"})
    message = str(caught.value)
    assert "toy.jsonl:1: the columns id, problem, answer are not those of any known format" in message
    assert "  synthetic_1: prompt, llm_response\n" in message
    assert "  gsm8k: question, answer (with ####)\n" in message
    assert "Name the layout with `format`, or map it with `columns:" in message
    assert "think tags other than <think> and <|begin_of_thought|> are set with `think_open`" in message


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        pytest.param({}, {}, r"the columns \(none\) are not", id="no columns"),
        pytest.param(COLUMNS, {"format": "s1k"}, "format 's1k'.*deepseek_attempt", id="named format"),
        pytest.param(COLUMNS, {"columns": {"gold": "ref"}}, "gold is set to 'ref'", id="mapped column not there"),
        pytest.param(
            COLUMNS,
            {"format": "gsm8k", "columns": {"cot": "cot"}},
            "belongs to `format: columns`",
            id="mapping and name",
        ),
        pytest.param(
            {"messages": THINK}, {}, r"messages: messages\|conversations\|conversation \(a list", id="messages as text"
        ),
        pytest.param(
            {"instruction": "x", "input": "y", "output": ANSWER},
            {},
            r"input, output \(and no instruction\).*prompt_response: prompt\|.* \(with think tags inside\)",
            id="Alpaca without think tags",
        ),
        pytest.param(
            COLUMNS, {"format": "gsm8k", "columns": {"cot": "cot"}}, "not to `format: gsm8k`", id="named, not mappable"
        ),
        pytest.param(
            COLUMNS,
            {"format": "columns", "columns": {"conversation": "cot"}},
            "no `format: columns` has all the roles conversation",
            id="role of another format",
        ),
    ],
)
def test_columns_that_do_not_fit_are_an_error(row: dict[str, Any], source: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(row, **source)
