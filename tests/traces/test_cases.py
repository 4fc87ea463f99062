"""Records as people have them, after public reports: what is read of each file of `cases`, and what is refused.

The same files stand in the data folder beside the checkout; there they are read where they are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadspan.audit.overlap import index_tasks, shared_with
from leadspan.data.prepare import split
from leadspan.data.sections import Renderer, step_starts
from leadspan.data.settings import DataSettings, HeldOutShare, Rendering
from leadspan.errors import DataError
from leadspan.evaluation.settings import TaskSettings
from leadspan.traces.read import list_files, read_traces
from leadspan.traces.records import Refusal, RefusalCounter, Trace
from leadspan.traces.settings import TraceSource
from toys import character_tokenizer

MISTYPED = "missing or mistyped column"
ANSWER = "The answer is \\boxed{7}."
COT = (
    "I add three and four, because the question asks for their sum.\n\nThree and four make seven. So the sum is 7.\n\n"
    "Let me check: seven less four is three. Good."
)

CaseFile = Callable[[str], Path]


@pytest.fixture(params=["own", pytest.param("shared", marks=pytest.mark.shared)])
def case_file(request: pytest.FixtureRequest) -> CaseFile:
    if request.param == "own":
        return (Path(__file__).parent / "cases").joinpath
    return (request.getfixturevalue("shared").parent / "cases" / "data").joinpath


def read(path: Path, **source: Any) -> tuple[list[Trace], RefusalCounter]:
    counter = RefusalCounter()
    return list(counter.usable(read_traces(TraceSource(path=str(path), **source)))), counter


@pytest.mark.parametrize(
    ("name", "source", "num_used", "refused"),
    [
        ("01_closing_bracket_in_refusal.jsonl", {}, 24, {"no think tags": 1}),
        ("02_split_files", {}, 6, {}),
        ("02_split_files", {"split": "validation"}, 2, {}),
        ("02_split_files", {"split": "test"}, 4, {}),
        ("03_gz_beside_plain", {}, 9, {}),
        ("04_metadata_beside_data", {}, 3, {}),
        ("11_tool_calls.jsonl", {}, 0, {"tools or media, which no trace can carry": 3}),
        ("12_first_record_lacks_answer.jsonl", {}, 40, {MISTYPED: 1}),
        ("12_first_record_lacks_answer.jsonl", {"format": "columns"}, 40, {MISTYPED: 1}),
        ("12_first_record_lacks_answer.jsonl", {"columns": {"answer": "answer"}}, 40, {MISTYPED: 1}),
        ("14_gold_is_a_list.jsonl", {}, 4, {}),
        ("14_gold_is_an_object.jsonl", {}, 4, {}),
        ("15_answer_nan_or_bool.jsonl", {}, 1, {MISTYPED: 2}),
        ("16_conversation_under_another_name.jsonl", {}, 3, {}),
        ("16_instruction_input_output.jsonl", {}, 3, {}),
        ("16_problem_and_generated_solution.jsonl", {}, 3, {}),
        ("16_prompt_and_completion.jsonl", {}, 3, {}),
        ("16_prompt_and_completion.jsonl", {"columns": {"prompt": "prompt", "response": "completion"}}, 3, {}),
        ("16_conversation_under_another_name.jsonl", {"columns": {"conversation": "conversation"}}, 3, {}),
        ("17_content_in_parts.jsonl", {}, 3, {}),
        ("18_other_tags.jsonl", {}, 0, {"no think tags": 4}),
        ("18_other_tags.jsonl", {"think_open": "[THINK]", "think_close": "[/THINK]"}, 1, {"no think tags": 3}),
        ("18_other_tags.jsonl", {"think_open": "<thought>", "think_close": "</thought>"}, 1, {"no think tags": 3}),
        (
            "18_other_tags.jsonl",
            {"think_open": "<seed:think>", "think_close": "</seed:think>"},
            1,
            {"no think tags": 3},
        ),
        (
            "18_other_tags.jsonl",
            {
                "think_open": "<|channel|>analysis<|message|>",
                "think_close": "<|end|><|start|>assistant<|channel|>final<|message|>",
            },
            1,
            {"no think tags": 3},
        ),
    ],
)
def test_what_is_read_and_what_is_refused(
    case_file: CaseFile, name: str, source: Any, num_used: int, refused: dict[str, int]
) -> None:
    traces, counter = read(case_file(name), **source)
    assert (len(traces), dict(counter.counts)) == (num_used, refused)
    if not name.startswith(("01", "02", "03", "04")):
        assert {(trace.cot, trace.answer) for trace in traces} <= {(COT, ANSWER), (COT, "7")}


def test_a_split_that_is_not_there_is_an_error(case_file: CaseFile) -> None:
    with pytest.raises(DataError, match="no file of the split nosuch"):
        read(case_file("02_split_files"), split="nosuch")


def test_what_is_left_out_of_a_directory_is_named(case_file: CaseFile) -> None:
    listing = list_files(case_file("02_split_files"))
    assert listing.passed_over == ("test.jsonl (split test)", "validation.jsonl (split validation)")


@pytest.mark.parametrize(
    ("name", "fault"), [("14_gold_is_a_list.jsonl", "a list of several"), ("14_gold_is_an_object.jsonl", "an object")]
)
def test_reference_answers_that_are_no_text_are_none(case_file: CaseFile, name: str, fault: str) -> None:
    traces, _ = read(case_file(name))
    assert {(trace.gold, trace.gold_fault) for trace in traces} == {(None, fault)}


def test_control_tokens_in_a_text_are_refused(case_file: CaseFile) -> None:
    renderer = Renderer(character_tokenizer(), Rendering())
    traces, _ = read(case_file("19_control_tokens_in_text.jsonl"))
    said = [text.reason if isinstance(text, Refusal) else "" for text in map(renderer.render, traces)]
    assert said == ["control token in the text"] * 3 + [""]


def test_a_question_is_held_out_under_all_system_prompts(case_file: CaseFile, tmp_path: Path) -> None:
    renderer = Renderer(character_tokenizer(), Rendering())
    source = TraceSource(path=str(case_file("20_one_question_many_systems.jsonl")))
    parts = split(DataSettings(train=source, validation=HeldOutShare(share=0.1), cache_dir=tmp_path), renderer, 0)
    assert parts.validation is not None
    held, trained = (
        {renderer.tokenizer.decode(ids).split("user\n")[1].split("<|im_end|>")[0] for ids in rows["input_ids"]}
        for rows in (parts.validation, parts.train)
    )
    assert (len(held), len(trained), len(held & trained)) == (2, 18, 0)
    assert (len(parts.validation), len(parts.train)) == (8, 72)


def test_a_question_without_spaces_is_found_among_the_prompts(case_file: CaseFile) -> None:
    path = case_file("21_task_without_spaces.jsonl")
    index = index_tasks([TaskSettings(name="t", path=str(path))], 13)
    ((_, asked),) = index.problems[0]
    assert shared_with(asked, index) == {(0, 0): 1.0}
    assert shared_with(asked[len(asked) // 2 :] + asked[: len(asked) // 2], index)[0, 0] < 1


def test_blank_lines_of_all_kinds_are_steps(case_file: CaseFile) -> None:
    traces, _ = read(case_file("26_other_blank_lines.jsonl"))
    assert [len(step_starts(trace.cot, 0, len(trace.cot), "\n\n")) for trace in traces] == [4, 4, 4, 0]
