import subprocess
import sys
from fractions import Fraction

import pytest

from leadspan.answers.latex import as_latex, literal, names
from leadspan.answers.numbers import as_number, numbers, small_number_words, unassigned


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64,800 and 20{,}000", ["64800", "20000"]),
        (r"\frac{13}{15}, \dfrac34, 137\frac{1}{2}", ["13/15", "3/4", "275/2"]),
        ("$12.50, €3, 45%", ["25/2", "3", "45"]),
        ("3.2e-4, 6.5 x 10^3, 2 \\times 10^{-1}, 1.5e3.", ["1/3125", "6500", "1/5", "1500"]),
        ("x = -5, 7 - 5, 8 -5, is -5", ["-5", "7", "5", "8", "5", "-5"]),
        ("137 and a half", ["275/2"]),
        ("x^2, a_3, H2O, 2^10", ["2"]),
        ("16/27", ["16/27"]),
        ("1/0", []),
    ],
)
def test_numbers_of_a_text(text: str, values: list[str]) -> None:
    assert [str(number.value) for number in numbers(text)] == values


def test_a_number_knows_where_it_stands() -> None:
    text = "it costs $64,800 now"
    (number,) = numbers(text)
    assert text[number.start : number.end].lstrip("$") == "64,800"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("$1,200", Fraction(1200)),
        (r"15\mbox{ cm}^2", Fraction(15)),
        (r"90^\circ", Fraction(90)),
        ("90 degrees", Fraction(90)),
        (r"10\%", Fraction(10)),
        ("x = -0.5", Fraction(-1, 2)),
        ("+2", Fraction(2)),
        ("91.0", Fraction(91)),
        (r"\boxed{7}", Fraction(7)),
        ("2.5 meters", Fraction(5, 2)),
        ("(0,5]", None),
        ("3, 5, 7", None),
        ("2x+1", None),
        (r"\sqrt{5}", None),
        (r"8\pi", None),
        ("52_8", None),
        ("Navin", None),
        ("", None),
    ],
)
def test_an_answer_that_is_one_number(answer: str, value: Fraction | None) -> None:
    assert as_number(answer) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\left( \dfrac{3}{2}, -13 \right)", r"(\frac{3}{2},-13)"),
        ("√5", r"\sqrt{5}"),
        (r"\sqrt{4\piG\rho_{0}}", r"\sqrt{4\pi G \rho_0}"),
        (r"(3, π/2)", r"(3,\frac{\pi}{2})"),
        (r"\gamma(\mathbf{v} \times \mathbf{A})", "γ(v × A)"),
        (r"x \leq 3", r"x \le 3"),
        (r"\{1, 2\}", "{1,2}"),
    ],
)
def test_spellings_of_one_expression_have_one_literal_form(one: str, other: str) -> None:
    assert literal(one) == literal(other)


def test_different_expressions_keep_different_forms() -> None:
    assert len({literal(text) for text in ("(0,5]", "[0,5]", "(0,5)", "0,5", "0.5")}) == 5


def test_names_ignore_order_and_shape() -> None:
    assert names(literal(r"\frac{1}{s+a}")) == names(literal(r"(a + s)^{-1}")) == {"a", "s"}
    assert names(literal(r"4\piG")) == {r"\pi", "G"}


def test_small_helpers() -> None:
    assert [n.value for n in small_number_words("Three treeks, one squig, none")] == [3, 1]
    assert unassigned("y = 2x + 3") == "2x + 3"
    assert unassigned("a + b = c = d") == "a + b = c = d"
    assert as_latex("√(2) ≤ π") == r"\sqrt{2} \le  \pi "


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("42 kilometres per hour", 42),
        ("42 sq. cm. ^{2} ", 42),
        (r"42\, \text{cm}\mathrm{ s}", 42),
        ("42 km\\%", 42),
        ("42 km, or so", None),
        ("42 a", None),
        ("42 km a", None),
        ("42 km\n per h", None),
    ],
)
def test_what_follows_a_number_is_a_unit_or_the_answer_is_no_number(answer: str, value: int | None) -> None:
    assert as_number(answer) == value


def test_many_words_behind_a_number_are_read_in_linear_time() -> None:
    """In a process of its own: time that grows exponentially with the words would never return."""
    code = (
        "from leadspan.answers.numbers import as_number\n"
        "words = ' kilometres separates the northern station from the southern' * 20\n"
        "assert as_number(f'42{words}') == 42 and as_number(f'42{words}!') is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
