import random
import re
from collections import Counter

import pytest
from derivations import is_derived_in

from leadspan.errors import SettingsError
from leadspan.settings import validate
from leadspan.worlds.problems import Problem, first_answer_share
from leadspan.worlds.word_problems import CHECKS, WordProblems

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
NUMBER = re.compile(r"\d+")


def value(left: str, operator: str, right: str) -> int:
    return {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[operator]


@pytest.mark.parametrize(("low", "high", "checks", "distractors"), [(1, 1, 0, 0), (2, 3, 3, 1), (5, 6, 6, 3)])
def test_every_equation_is_true_and_leads_from_the_start_to_the_answer(
    low: int, high: int, checks: int, distractors: int
) -> None:
    world = WordProblems(min_steps=low, max_steps=high, num_checks=checks, max_distractors=distractors)
    for problem in world.problems(60, 0, "train"):
        amounts = [int(problem.equations[0].split()[0])]
        for equation in problem.equations:
            found = STEP.fullmatch(equation)
            assert found is not None
            before, operator, number, after = found.groups()
            assert int(before) == amounts[-1] and value(before, operator, number) == int(after) <= 99
            assert re.search(rf"\b{number}\b", problem.prompt)
            amounts.append(int(after))
        assert low <= len(problem.equations) <= high and min(amounts) >= 1
        assert problem.answer == str(amounts[-1]) and amounts.count(amounts[-1]) == 1
        assert problem.reply.count(f"\\boxed{{{problem.answer}}}") == 1
        told = Counter(NUMBER.findall(problem.prompt))
        told.subtract([str(amounts[0]), *(equation.split()[2] for equation in problem.equations)])
        assert min(told.values()) == 0 and sum(told.values()) <= distractors
        for left, operator, right, result in STEP.findall(problem.cot):
            assert (int(left) / int(right) if operator == "/" else value(left, operator, right)) == int(result)
        assert problem.cot.isascii() and "{" not in problem.cot + problem.prompt.replace("\\boxed{}", "")


def test_the_answer_first_stands_behind_the_equations() -> None:
    for problem in WordProblems().problems(60, 0, "train"):
        *lines, last = problem.derivation.split("\n")
        assert sum("=" in line for line in lines) == len(problem.equations) and "=" not in last
        assert re.search(rf"\b{problem.answer}\b", last) and problem.cot[len(problem.derivation) :][:2] == "\n\n"
        assert problem.cot.count("\n\n") == 2  # one check, and a conclusion


def test_more_checks_move_the_first_answer_forward() -> None:
    shares = [first_answer_share(WordProblems(num_checks=n).problems(50, 0, "train")) for n in (0, 1, 3)]
    assert shares[0] == 1 > 0.7 > (shares[1] or 0) > 0.5 > 0.45 > (shares[2] or 0)


def test_checks_are_of_all_kinds_and_nothing_has_one_phrasing() -> None:
    problems = WordProblems(num_checks=4, max_distractors=7).problems(400, 0, "train")
    cots = [problem.cot for problem in problems]
    for texts in CHECKS.values():
        begins = [text.partition("{")[0] for text in texts]
        assert all(sum(begin in cot for begin in begins) == 1 for cot in cots)  # each kind once in every trace
        assert all(any(begin in cot for cot in cots) for begin in begins)
    assert len({cot.partition("\n")[0] for cot in cots}) > 20


PROBLEM = Problem("p", "", "20", None, equations=("12 + 7 = 19", "19 + 1 = 20"))


@pytest.mark.parametrize(
    ("text", "is_derived"),
    [
        pytest.param("<think>\nStart: 12+7 = 19, then 19 +1=20. So 20", True, id="free words and blanks"),
        pytest.param("We add 7. 12 + 7 = 19. Wait 19 + 1 = 20. 3 + 3 = 7", True, id="what follows does not matter"),
        pytest.param("12 + 7 = 19", False, id="half of it"),
        pytest.param("19 + 1 = 20, 12 + 7 = 19", False, id="another order"),
        pytest.param("12 - 7 = 5. No: 12 + 7 = 19, 19 + 1 = 20", False, id="a wrong one first"),
        pytest.param("12 + 7 = 19, 19 + 1 = 201", False, id="a longer number"),
        pytest.param("20", False, id="no equation"),
    ],
)
def test_a_derivation_is_right_by_its_equations(text: str, is_derived: bool) -> None:
    assert is_derived_in(PROBLEM, text) is is_derived


def test_settings_that_hardly_a_story_fits_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"100,000 drawn stories of 20 to 20 steps .*; raise largest, or lower min_"
    ):
        WordProblems(min_steps=20, max_steps=20, largest=20, largest_change=10_000).draw(random.Random(0))


def test_steps_ascend() -> None:
    with pytest.raises(SettingsError, match="min_steps 5, max_steps 3"):
        validate(WordProblems, {"min_steps": 5, "max_steps": 3}, "world")
