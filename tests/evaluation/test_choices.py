import pytest

from leadspan.answers.grading import GradeItem, Verdict, literal_grade
from leadspan.errors import DataError
from leadspan.evaluation.tasks import choice_grade

CHOICES = ("a red hat", "B", "12", "none of these")


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        pytest.param("<think>A?</think>\\boxed{C}", True, Verdict("right", "right", "C"), id="letter"),
        pytest.param("\\boxed{(C)}", True, Verdict("right", "right", "(C)"), id="brackets"),
        pytest.param("\\boxed{\\text{C. 12}}", True, Verdict("right", "right", "\\text{C. 12}"), id="letter and text"),
        pytest.param("\\boxed{12}", True, Verdict("right", "right", "12"), id="text of a choice"),
        pytest.param(
            "\\boxed{A red hat}", True, Verdict("wrong", "wrong", "A red hat"), id="text that begins with a letter"
        ),
        pytest.param("\\boxed{A} or \\boxed{C}", True, Verdict("right", "right", "C"), id="last of two boxes"),
        pytest.param("<think>\\boxed{C}</think>\\boxed{A}", True, Verdict("wrong", "wrong", "A"), id="box in thinking"),
        pytest.param("\\boxed{E}", True, Verdict("unparsed", "unparsed", "E"), id="no such choice"),
        pytest.param("\\boxed{perhaps}", True, Verdict("unparsed", "unparsed", "perhaps"), id="no choice"),
        pytest.param("So the answer is **C**.", True, Verdict("no_answer", "right", None), id="stated"),
        pytest.param("Answer: (A), no, answer: C", True, Verdict("no_answer", "right", None), id="last stated"),
        pytest.param("The answer is a mystery.", True, Verdict("no_answer", "no_answer", None), id="small a is a word"),
        pytest.param("C", True, Verdict("no_answer", "right", None), id="bare letter"),
        pytest.param("\\boxed{C} and", False, Verdict("no_answer", "right", None), id="unfinished"),
        pytest.param("<think>\\boxed{C}", False, Verdict("no_answer", "right", None), id="never closed"),
        pytest.param("", True, Verdict("no_answer", "no_answer", None), id="nothing"),
    ],
)
def test_choice_grade(text: str, finished: bool, expected: Verdict) -> None:
    assert choice_grade(GradeItem(text, "C", finished, CHOICES)) == expected


def test_long_runs_of_blanks_leave_the_letter() -> None:
    blanks = " " * 1_000_000
    text = f"a{blanks}</think>The answer{blanks}is \\boxed{{{blanks}C{blanks}}}"
    verdict = choice_grade(GradeItem(text, "C", True, CHOICES))
    assert (verdict.strict, verdict.flexible) == ("right", "right")
    assert choice_grade(GradeItem(f"option{blanks}so the answer is C", "C", True, CHOICES)).flexible == "right"


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("\\boxed{\\text{Option C}}", "right", "right"),
        ("\\boxed{C - 12}", "right", "right"),
        ("\\boxed{[C]}", "right", "right"),
        ("\\boxed{**C**}", "right", "right"),
        ("\\boxed{\N{FULLWIDTH LATIN CAPITAL LETTER C}}", "right", "right"),
        ("\\boxed{c}", "right", "right"),
        ("\\boxed{\\text{The answer is C}}", "right", "right"),
        ("\\fbox{C}", "right", "right"),
        ("\\boxed{\\text{C}.}", "right", "right"),
        ("答案\N{FULLWIDTH COLON}C", "no_answer", "right"),
        ("答案是C。", "no_answer", "right"),
        ("答案是B。", "no_answer", "wrong"),
        ("\\boxed{x \\ll y}\n\n**Answer: C**", "unparsed", "right"),
        ("So I choose C", "no_answer", "right"),
        ("The answer is \\(C\\).", "no_answer", "right"),
        ("answer is not A but C", "no_answer", "right"),
        ("The answer is A good one: C", "no_answer", "right"),
        ("The answer is A because 12", "no_answer", "wrong"),
        ("The answer is C. Option A is too small, and so is option D.", "no_answer", "right"),
        ("**Answer**: (C) 12\n\nOption A: no", "no_answer", "right"),
        ("Therefore, C is the correct answer.", "no_answer", "right"),
        ("Option C is right. Option D is wrong.", "no_answer", "right"),
        ("Option A is right. Option C is wrong.", "no_answer", "wrong"),
        ("The answer to this question is C.", "no_answer", "right"),
        ("<answer>C</answer>", "no_answer", "right"),
        ('{"answer": "C"}', "no_answer", "right"),
        ("故选\N{FULLWIDTH COLON}C", "no_answer", "right"),
        ("Hence C.", "no_answer", "right"),
        ("The answer is C or B.", "no_answer", "no_answer"),
        ("The answer is option A or option C.", "no_answer", "no_answer"),
        ("The answer is C and A is wrong.", "no_answer", "right"),
        ("The wrong answer is C.", "no_answer", "no_answer"),
        ("The answer cannot be C.", "no_answer", "no_answer"),
        ("\\boxed{C) or D)}", "unparsed", "unparsed"),
    ],
)
def test_how_letters_are_written(text: str, strict: str, flexible: str) -> None:
    verdict = choice_grade(GradeItem(text, "C", True, CHOICES))
    assert (verdict.strict, verdict.flexible) == (strict, flexible)


def test_a_text_that_two_choices_share_is_none() -> None:
    assert choice_grade(GradeItem("\\boxed{x}", "A", True, ("x", "x"))).strict == "unparsed"


def test_choice_needs_a_gold() -> None:
    with pytest.raises(DataError, match="gold is ''"):
        choice_grade(GradeItem("\\boxed{A}", "", True, CHOICES))


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        pytest.param('{"a": [1,2]}', "{'a': [1, 2]}", "right", id="quotes and spaces"),
        pytest.param("1", "True", "wrong", id="other type"),
        pytest.param("[True, {1.0: 2}]", "[1, {1: 2}]", "wrong", id="other types within"),
        pytest.param("{2: {3}, 1: (4,)}", "{1: (4,), 2: {3}}", "right", id="order of keys"),
        pytest.param(r"'a\_b'", "'a_b'", "right", id="escaped within a string"),
        pytest.param(r"\text{'a'}", "'a'", "right", id="in a text command"),
        pytest.param("`[1]`", "[1]", "right", id="in backticks"),
        pytest.param(r"'\$5'", r"'\$5'", "right", id="the gold to the letter"),
        pytest.param("'a b'", "'a  b'", "wrong", id="white space within a string"),
        pytest.param("\\{1: 2\\}", "{1: 2}", "right", id="escaped braces"),
        pytest.param("[2, 1]", "[1, 2]", "wrong", id="other order"),
        pytest.param("hello", "'hello'", "unparsed", id="no literal"),
        pytest.param("__import__('os').getcwd()", "'x'", "unparsed", id="a call is not run"),
        pytest.param("(" * 9000, "'x'", "unparsed", id="deep"),
        pytest.param("`" * 9000 + "1", "1", "unparsed", id="a loop of backticks, which was tried in 10^11 ways"),
    ],
)
def test_literal_grade(answer: str, gold: str, outcome: str) -> None:
    assert literal_grade(GradeItem(f"<think>a</think>\\boxed{{{answer}}}", gold, True)).strict == outcome


def test_a_literal_in_a_block_of_code() -> None:
    outcomes = [literal_grade(GradeItem(f"```python\n{text}\n```", "[1,2]", True)).strict for text in ("[1, 2]", "[2]")]
    assert outcomes == ["right", "wrong"]
