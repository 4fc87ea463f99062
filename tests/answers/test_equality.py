"""Answers that were once graded otherwise than they should be, and the rules that mend their spelling."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from leadspan.answers.boxes import committed_boxes
from leadspan.answers.equality import decide, normalise
from leadspan.answers.expressions import stated_expressions, stated_words
from leadspan.answers.grading import GradeItem, MathGrader
from leadspan.answers.numbers import as_number, literal, numbers
from leadspan.answers.spelling import RULES, Rule, respell

CASES = [json.loads(line) for line in (Path(__file__).parent / "answers_and_golds.jsonl").read_text().splitlines()]


LONG = 1_000_000
"""Characters of inputs over which anything quadratic would run for hours."""


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(num_workers=2) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_answers_by_kind(grader: MathGrader, kind: str) -> None:
    cases = [case for case in CASES if case["kind"] == kind]
    texts = [case.get("text", f"The answer is $\\boxed{{{case.get('answer')}}}$.") for case in cases]
    verdicts = grader.grade([GradeItem(text, case["gold"], True) for text, case in zip(texts, cases, strict=True)])
    for text, case, verdict in zip(texts, cases, verdicts, strict=True):
        expected = (case["right"], case.get("flexible", case["right"]))
        assert (verdict.strict == "right", verdict.flexible == "right") == expected, (text, case["gold"], verdict)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example)
def test_each_rule_is_needed_for_its_example(rule: Rule) -> None:
    assert rule.source
    assert respell(rule.example) == rule.becomes
    assert rule.pattern.search(rule.example) or rule.example != rule.becomes


@pytest.mark.slow
@pytest.mark.parametrize("filler", [" ", "\n", "\u00a0", "\\", "$", "\\boxed{", "1,234,", "a, ", "= "])
def test_long_runs_of_anything_are_read_in_one_pass(filler: str) -> None:
    run = filler * (LONG // len(filler))
    assert [n.value for n in numbers(f"7 {run} 8")][:1] == [7]
    assert as_number(f"7{run}x+") is None
    assert literal(f"7{run}8").startswith("7")
    assert normalise(f"7{run}8").startswith("7")
    assert committed_boxes(f"{run} then \\boxed{{2}}") == "2"
    assert not any(candidate.is_equal for candidate in stated_expressions(f"so {run}", "x+\\sqrt{2}", run))
    assert list(stated_words(f"so {run}", "East", f"East or West {run}")) == []


def test_long_runs_of_blanks_leave_the_verdict(grader: MathGrader) -> None:
    blanks = " " * LONG
    text = f"<think>a{blanks}b</think>It is{blanks}\\boxed{{{blanks}5{blanks}}}{blanks}."
    verdicts = grader.grade([GradeItem(text, gold, True) for gold in ("5", "6")])
    assert [verdict.strict for verdict in verdicts] == ["right", "wrong"]


@pytest.mark.parametrize("answer", ["5 is wrong", r"5\text{ is incorrect}", "5 cannot be", "5 isn't", "5 (extraneous)"])
def test_words_that_take_a_number_back_are_no_unit(answer: str) -> None:
    assert decide(answer, "5") != "right"


def test_a_currency_in_text_is_one() -> None:
    assert decide(r"\text{€}50", "50") == decide("50€", "50") == "right"
