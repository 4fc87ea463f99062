import pytest

from leadspan.answers.first_answer import stated_expressions, stated_words


def first(cot: str, gold: str, question: str = "Find it.") -> tuple[str, bool] | None:
    """The first candidate and whether it is certain."""
    return next(((c.text, c.is_equal) for c in stated_expressions(cot, gold, question)), None)


@pytest.mark.parametrize(
    ("cot", "gold", "found"),
    [
        pytest.param("Therefore, r = √5 meters.", r"\sqrt{5}", (r"\sqrt{5}", True), id="root"),
        pytest.param("so the interval is (0, 5]. Done", "(0,5]", ("(0, 5]", True), id="interval"),
        pytest.param("The set is \\{1, 2\\}.", r"\{1,2\}", (r"\{1, 2\}", True), id="set"),
        pytest.param(
            "pair is \\( \\left( \\frac{3}{2}, -13 \\right) \\).",
            r"(\frac{3}{2},-13)",
            (r"\left( \frac{3}{2}, -13 \right)", True),
            id="pair",
        ),
        pytest.param("so y = 15x - 80, right", "15x-80", ("15x - 80", True), id="expression"),
        pytest.param("= \\frac{1}{a + s}", r"\frac{1}{s+a}", (r"\frac{1}{a + s}", False), id="left to algebra"),
        pytest.param("the roots are x = 3, x = 5, and x = 7.", "3,5,7", ("3,5,7", True), id="listed roots"),
        pytest.param("\\[T - 2w = 3v\\]", "3v+2w=T", ("T - 2w = 3v", False), id="equation"),
        pytest.param("is (0, 5)", "(0,5]", ("(0, 5)", False), id="other brackets are left to algebra"),
        pytest.param("is 2 \\cdot 2 x", "4y", None, id="other letters"),
        pytest.param("the same as P - 4 - 2", "P-6", None, id="not worked out"),
        pytest.param("We need $r$ and x.", r"\sqrt{5}", None, id="nothing"),
    ],
)
def test_expressions_that_are_or_may_be_the_gold(cot: str, gold: str, found: tuple[str, bool] | None) -> None:
    assert first(cot, gold) == found


def test_an_expression_of_the_question_is_restated_unless_it_is_concluded() -> None:
    question = "Simplify the sum $x + y$."
    assert first("The sum is x + y, let me see.", "x+y", question) is None
    assert first("Therefore it is x + y.", "x+y", question) == ("x + y", True)


@pytest.mark.parametrize(
    ("cot", "gold", "question", "at"),
    [
        ("Okay, so Navin, Luka, and Ian work. Navin's pay is 4. So Navin earns the most.", "Navin",
         "Navin from Peru, Luka from Rome, and Ian from Oslo work. Who earns the most?", "Navin earn"),
        ("She turns. That would be... east? Or west.", "east", "Is it north, south, east or west?", "east? Or w"),
        ("It is not east. If east is right, fine.", "east", "Does she face north, south, east or west?", None),
        ("Line A meets C. The answer is (C).", "C", "Which?", "C)."),
        ("A is a set and C is empty.", "C", "Which?", None),
        ("Option B: 11, no. Option C: 12, it works. So the answer is C.", "C", "Which?", "C."),
        ("Let's check option C. It says 12. So it must be option C.", "C", "Which?", "C."),
        ("Option C says 12. Option C matches the sum.", "C", "Which?", "C matches "),
        ("If the answer is C, it is 12. The answer is not C.", "C", "Which?", None),
    ],
)  # fmt: skip
def test_words_count_where_they_are_named_as_the_answer(cot: str, gold: str, question: str, at: str | None) -> None:
    found = next(stated_words(cot, gold, question), None)
    assert (None if found is None else cot[found[0] : found[0] + 10]) == at
