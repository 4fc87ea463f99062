import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadspan.errors import SettingsError
from leadspan.settings import validate
from leadspan.worlds.problems import Multiplication, Problem, digits, first_answer_share, lettered

STEP = re.compile(r"([a-z])(\d+)\*(\d)=(\d+)\+(\d+)=(\d+)")


def number(text: str, base: int) -> int:
    """A number from its digits, the lowest first."""
    return sum(int(digit) * base**place for place, digit in enumerate(text))


def unlettered(text: str) -> str:
    assert text[::2] == "abcdefghijklmnopqrstuvwxyz"[: len(text) // 2]
    return text[1::2]


def check(problem: Problem, world: Multiplication) -> None:
    base = world.base
    left, right = problem.prompt.removesuffix("?").split("*")
    multiplicand, multiplier = number(left, base), number(unlettered(right), base)
    product = multiplicand * multiplier
    assert number(unlettered(problem.answer), base) == product
    assert len(left) == world.multiplicand_digits and left[-1] != "0" and right[-1] != "0"
    *checks, derivation = reversed(problem.cot.split("\ncheck\n"))
    assert len(checks) == world.num_checks and set(checks) <= {derivation}
    lines = derivation.split("\n")
    if world.answer_in_cot:
        assert lines.pop() == f"={problem.answer}"
    found = [STEP.fullmatch(line) for line in lines]
    running = 0
    for place, (step, digit) in enumerate(zip(found, unlettered(right), strict=True)):
        assert step is not None
        letter, repeated, times, partial, carried, total = step.groups()
        assert (letter, repeated, times) == ("abcdefghijkl"[place], left, digit)
        assert number(partial, base) == multiplicand * int(digit)
        assert number(carried, base) == running // base**place  # the running sum in units of this place
        running += number(partial, base) * base**place
        assert number(total, base) == running // base**place
        assert number(unlettered(problem.answer)[:place], base) == running % base**place  # settled
    assert running == product


@pytest.mark.slow
@given(
    st.integers(2, 10),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_line_is_true_and_the_answer_stands_where_it_says(
    base: int, low: int, extra: int, width: int, checks: int, stated: bool, seed: int
) -> None:
    world = Multiplication(
        base=base,
        min_digits=low,
        max_digits=low + extra,
        multiplicand_digits=width,
        num_checks=checks,
        answer_in_cot=stated,
    )
    rng = random.Random(seed)
    for problem in (world.draw(rng) for _ in range(4)):
        check(problem, world)
        if not stated:
            assert problem.first_answer is None and f"={problem.answer}" not in problem.cot
        else:
            first = re.search(rf"={problem.answer}(?!\w)", problem.cot)
            assert first is not None and problem.first_answer == first.end()


def test_a_problem_by_hand() -> None:
    problem = Multiplication(base=5)._write(23, 7)  # 43 and 12 to the base 5, together 1121
    assert problem.prompt == "34*a2b1?"
    assert problem.cot == "a34*2=141+00=141\nb34*1=340+41=211\n=a1b2c1d1"
    assert problem.answer == "a1b2c1d1" and problem.first_answer == len(problem.cot)
    assert Multiplication(base=5, answer_in_cot=False)._write(23, 7).cot == "a34*2=141+00=141\nb34*1=340+41=211"


def test_numbers() -> None:
    assert [digits(n, 10) for n in (0, 7, 120)] == ["0", "7", "021"] and lettered("021") == "a0b2c1"


def test_checks_move_the_first_answer_and_leaving_it_out_removes_it() -> None:
    shares = [first_answer_share(Multiplication(num_checks=n).problems(30, 0, "train")) for n in (0, 1, 2)]
    assert shares[0] == 1 and shares[1] == pytest.approx(0.5, abs=0.05) and shares[2] == pytest.approx(1 / 3, abs=0.05)
    assert first_answer_share(Multiplication(answer_in_cot=False, num_checks=1).problems(5, 0, "train")) is None


def test_a_world_with_too_few_problems_is_told_however_many_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, draw = itertools.count(), Multiplication.draw
    monkeypatch.setattr(Multiplication, "draw", lambda self, rng: (next(draws) and None) or draw(self, rng))
    with pytest.raises(SettingsError, match=r"multiplication: 1000000 distinct train problems"):
        Multiplication(base=2, min_digits=1, max_digits=3).problems(1_000_000, 0, "train")
    assert next(draws) < 20_000


@pytest.mark.slow
def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(SettingsError, match="they must ascend"):
        validate(Multiplication, {"min_digits": 5, "max_digits": 3}, "world")
    with pytest.raises(SettingsError, match=r"base = 11"):
        validate(Multiplication, {"base": 11}, "world")
    with pytest.raises(SettingsError, match=r"multiplication: 900 distinct train problems .* widen min_digits"):
        Multiplication(base=2, min_digits=1, max_digits=3).problems(900, 0, "train")
