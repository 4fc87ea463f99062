from fractions import Fraction

import pytest

from leadspan.answers.numbers import Question, first_stated_number


def stated(cot: str, gold: str, question: str = "How many are there?") -> str | None:
    """The text from the statement on, up to ten characters."""
    found = first_stated_number(cot, Fraction(gold), Question.of(question))
    return None if found is None else cot[found.start : found.start + 10]


@pytest.mark.parametrize(
    ("cot", "gold", "at"),
    [
        pytest.param("60 plus 15 is 75. Wait, let me check.", "75", "75. Wait, ", id="is"),
        pytest.param("So 69,200 - 4,400 = 64,800. Right.", "64800", "64,800. Ri", id="equals"),
        pytest.param("That's 30. So, 30 students.", "30", "30. So, 30", id="that's"),
        pytest.param("So 41 would be the answer.", "41", "41 would b", id="concluding sentence"),
        pytest.param("we get \\boxed{7}", "7", "7}", id="boxed"),
        pytest.param("It is $\\frac{6}{8}$ of it.", "0.75", "\\frac{6}{8", id="another form"),
        pytest.param("so r = 0.1, so 10%. Check.", "10", "10%. Check", id="percent"),
        pytest.param("Hence three sets are left.", "3", "three sets", id="word"),
        pytest.param("7 * 5 is 35, and 35 plus 40 is 75.", "5", None, id="factor"),
        pytest.param("Step 5: look. Case 5. Equation 5 holds.", "5", None, id="numbers of steps"),
        pytest.param("5. The fifth item\n5) another", "5", None, id="list items"),
        pytest.param("If x is 5, then it breaks.", "5", None, id="supposed"),
        pytest.param("The remainders are 0, 1, or 5.", "1", None, id="listed"),
        pytest.param("The total is 5 times that.", "5", None, id="goes on"),
        pytest.param("", "5", None, id="empty"),
    ],
)
def test_what_states_a_number_and_what_does_not(cot: str, gold: str, at: str | None) -> None:
    assert stated(cot, gold) == at


def test_a_gold_of_five_in_a_text_full_of_fives() -> None:
    question = "Sam has 5 bags with 5 apples each and 4 friends. He keeps 5. How many apples does each friend get?"
    cot = (
        "Sam has 5 bags. Each bag is 5 apples. So he has 5 bags of 5 apples, and he keeps 5. 5 times 5 is 25. "
        "Step 5: 25 - 5 = 20. There are 4 friends. 20 / 4 = 5. Let me check: 4 * 5 = 20."
    )
    assert stated(cot, "5", question) == "5. Let me "
    assert cot.index("5. Let me ") == cot.rindex("= 5") + 2


def test_an_intermediate_result_of_the_same_value_is_not_the_answer() -> None:
    cot = (
        "One-third of 36: 36 / 3 = 12. So 12 go swimming. Another third is 12. So 12 + 12 = 24 are gone. "
        "Then 36 - 24 = 12. Wait, let me check."
    )
    assert stated(cot, "12") == "12. Wait, "


def test_an_intermediate_result_counts_where_nothing_else_does() -> None:
    assert stated("36 / 3 = 12. Then 12 + 12 = 24. And 24 + 1 = 25.", "12") == "12. Then 1"


def test_the_numbers_of_the_question_are_not_stated_by_saying_them_again() -> None:
    question = "Tom is 16 now. How old is Ann, who is as old?"
    assert (
        stated("So Tom is 16 years old, and his age is 16 today, and of Ann nothing is known at all.", "16", question)
        is None
    )
    assert stated("Tom is 16 and Ann is as old. Therefore, the answer is 16.", "16", question) == "16."


@pytest.mark.parametrize(
    ("cot", "gold", "question", "at"),
    [
        pytest.param("y = 5. Then x = y - 0 = 5.", "5", "Find $x$.", "5.", id="another variable has the value"),
        pytest.param(
            "So x = 2 + 3 = 5\ny = 7", "5", "What is the value of $x$?", "5\ny = 7", id="another result follows"
        ),
        pytest.param("a=4\nb=a+0=4+0=4\nc=1", "4", "a=4;b=a+0;c=1;b?", "4\nc=1", id="a known value, computed"),
        pytest.param("If x = 5 it fails. So x = 2 + 3 = 5.", "5", "Solve for x.", "5.", id="supposed first"),
        pytest.param("y = 5 is all there is.", "5", "Find $x$.", "5 is all th", id="nothing else has it"),
        pytest.param("So n = 5. Check.", "5", "Find $x$ and $y$.", "5. Check.", id="two are asked for"),
    ],
)
def test_a_question_for_one_variable_is_answered_by_what_it_is_given(
    cot: str, gold: str, question: str, at: str
) -> None:
    assert (stated(cot, gold, question) or "") == at[:10]
