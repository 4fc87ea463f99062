"""Answers that were once graded otherwise than they should be, and the rules that mend their spelling."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from leadspan.answers.boxes import committed_boxes
from leadspan.answers.equality import decide, normalise
from leadspan.answers.first_answer import stated_expressions, stated_words
from leadspan.answers.grading import GradeItem, MathGrader
from leadspan.answers.latex import literal
from leadspan.answers.numbers import as_number, numbers
from leadspan.answers.spelling import RULES, Rule, respell

CASES = [json.loads(line) for line in (Path(__file__).parent / "answers_and_golds.jsonl").read_text().splitlines()]


LONG = 300_000
"""Characters of inputs over which anything quadratic would run for many minutes."""


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


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("101_2", "101", "wrong"),  # it is five
        ("101_2", "5", "right"),
        ("255_{10}", "255", "right"),
        ("101", "101_2", "right"),  # the base that was asked for, left out
        ("5", "101_2", "wrong"),
        ("101_3", "101_2", "wrong"),
        ("0101_2", "101_2", "right"),
        (r"101_{\text{base }2}", "101_2", "right"),
        (r"101 \text{ (base two)}", "101_2", "right"),
        (r"\mathrm{FF}_{16}", "FF_{16}", "right"),
        ("x = 52_8", "52_8", "right"),
        ("-101_2", "-5", "right"),
        ("0.11_2", "0.75", "right"),
        ("101_2 + 11_2", "8", "right"),
        ("9_2", "9", "unparsed"),  # no digit of base 2
        ("12_0", "12", "unparsed"),  # no base
        ("3_x", "3", "unparsed"),
        ("E_1", "E_2", "wrong"),
        (r"\frac{E_1 + 2E_2}{3}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", "right"),
    ],
)
def test_numerals_with_a_base(answer: str, gold: str, outcome: str) -> None:
    assert decide(answer, gold) == outcome


@pytest.mark.parametrize("power", [r"\sin^2 30^\circ", r"\sin^{2} 30^\circ", r"\sin ^2(30^\circ)"])
def test_powers_of_functions(power: str) -> None:
    assert decide(power, r"\frac{1}{4}") == "right"


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        (r"n^2 \text{ for even } n", "n^2", "wrong"),
        (r"n^2 \text{ for } n = 3", "n^2", "wrong"),
        (r"\frac{k\pi}{2} \text{ where } k \text{ is odd}", r"\frac{k\pi}{2}", "wrong"),
        (r"10 \text{ when } x = 5", "10", "right"),  # where the value is attained
        (r"p^2 \text{ where } p \text{ is prime}", "p^2", "right"),
        (r"\frac{1}{s + a} \quad \text{for } s > -a", r"\frac{1}{s+a}", "right"),
        (r"x^2 \text{ for all } x, y > 0", "x^2", "right"),
        (r"3 \text{ if } n \text{ is even}, 4 \text{ if } n \text{ is odd}", "3", "unparsed"),
        (r"n \text{ if } n > 0, 0 \text{ otherwise}", "n", "unparsed"),
        ("n^2", r"n^2 \text{ if } n \text{ is even}, n^2 - 1 \text{ if } n \text{ is odd}", "wrong"),
    ],
)
def test_one_case_of_several_is_not_the_answer(answer: str, gold: str, outcome: str) -> None:
    assert decide(answer, gold) == outcome


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("20 m/s", "72 km/h", "right"),
        ("72 km/h", "20 m/s", "right"),
        ("20 m/s", "20 km/h", "wrong"),
        ("20 m/s", "20", "right"),
        ("5 m", "500 cm", "right"),
        (r"500\text{ cm}", "5 m", "right"),
        ("5 m", r"5\text{ s}", "wrong"),
        ("5 m", "5 s", "wrong"),
        ("100 g", r"0.1\text{ kg}", "right"),
        ("2 h", r"120 \text{ min}", "right"),
        ("3.6 MJ", "3.6", "right"),
        ("3.6 MJ", "1 kWh", "right"),
        ("16 GB", "16", "right"),
        ("16 GB", "32", "wrong"),
        ("5m", "5", "wrong"),  # a product
        ("5", "5m", "wrong"),
    ],
)
def test_units_of_one_letter_convert(answer: str, gold: str, outcome: str) -> None:
    assert decide(answer, gold) == outcome


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("3+4j", "3+4i", "right"),
        ("3+4i", "3+4j", "right"),
        ("(1+2j)^2", "-3+4i", "right"),
        (r"\{2+j, 2-j\}", r"2 \pm i", "right"),
        ("3-4j", "3+4i", "wrong"),
        ("2i+3j", "2i+3", "wrong"),
        ("4j", "4", "wrong"),
    ],
)
def test_the_imaginary_unit_of_engineers(answer: str, gold: str, outcome: str) -> None:
    assert decide(answer, gold) == outcome


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (r"(a) \boxed{1} (b) \boxed{2}", "1, 2"),
        ("(a) $\\boxed{1}$\n\n(b) $\\boxed{2}$\n\n(c) $\\boxed{3}$", "1, 2, 3"),
        ("**Part (a):** \\boxed{1}\n\n**Part (b):** The sum is \\boxed{2}", "1, 2"),
        ("1. \\boxed{1}\n2. \\boxed{2}", "1, 2"),
        (r"i) \boxed{1}, ii) \boxed{2}", "1, 2"),
        (r"Part a: \boxed{1}. Part b: \boxed{2}.", "1, 2"),
        (r"\boxed{1} (a) is wrong, so it is \boxed{2}", "2"),
        (r"Step 1: \boxed{3}. Step 2: \boxed{4}", "4"),
        (r"\boxed{5} a \boxed{6}", "6"),
        (r"(a) \boxed{-2} (b) \boxed{-2}", "-2, -2"),
        (r"\boxed{16}, \boxed{3}, \boxed{1}, \boxed{1}", "16, 3, 1, 1"),
        ("\\boxed{6}\n\n\\boxed{6}", "6"),  # stated twice
        (r"\boxed{6}, \boxed{7}; \boxed{6}, \boxed{7}", "6, 7"),
    ],
)
def test_labelled_boxes_are_one_list(text: str, boxes: str) -> None:
    assert committed_boxes(text) == boxes
