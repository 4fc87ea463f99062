import hashlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadspan.errors import SettingsError
from leadspan.settings import validate
from leadspan.worlds.problems import DeriveAndVerify, evaluate, first_answer_share


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"), [(3, "+", 4, 2), (1, "-", 3, 3), (2, "*", 4, 3), (0, "-", 0, 0)]
)
def test_arithmetic_modulo_five_by_hand(left: int, operator: str, right: int, value: int) -> None:
    assert evaluate(left, operator, right) % 5 == value


@given(st.integers(2, 4), st.integers(0, 2), st.integers(2, 10), st.integers(0, 3), st.integers(0, 99))
def test_every_line_is_true_and_the_first_answer_is_where_it_says(
    low: int, extra: int, modulus: int, checks: int, seed: int
) -> None:
    world = DeriveAndVerify(min_variables=low, max_variables=low + extra, modulus=modulus, num_checks=checks)
    for problem in world.problems(3, seed, "train"):
        values: dict[str, int] = {}
        *equations, question = problem.prompt.split(";")
        for equation in equations:  # solve the prompt independently
            name, right = equation.split("=")
            found = re.fullmatch(r"(\w)([+*-])(\w)", right)
            if found is None:
                values[name] = int(right)
                continue
            a, operator, b = found.groups()
            operands = [values[x] if x in values else int(x) for x in (a, b)]
            values[name] = {
                "+": operands[0] + operands[1],
                "-": operands[0] - operands[1],
                "*": operands[0] * operands[1],
            }[operator] % modulus
        asked = question.rstrip("?")
        assert problem.answer == str(values[asked])
        lines = problem.cot.split("\n")
        for line in lines:
            for part in line.rstrip(".").split(","):
                if "=" in part:
                    assert int(part[-1]) == values[part[0]]
        assert lines.count("check") == checks
        stated = problem.cot[: problem.first_answer]
        assert stated.endswith(f"={problem.answer}") and stated.count("\n") == len(equations) - 1
        assert problem.cot[problem.first_answer] == "\n"


def test_splits_are_disjoint_distinct_and_deterministic() -> None:
    world = DeriveAndVerify(min_variables=4, max_variables=5)
    train, test = world.problems(800, 0, "train"), world.problems(200, 0, "test")
    assert train == world.problems(800, 0, "train") != world.problems(800, 1, "train")
    prompts = [p.prompt for p in train + test + world.problems(800, 1, "train")]
    assert len({p.prompt for p in train}) == 800 and len({p.prompt for p in test}) == 200
    assert all(hashlib.sha256(p.prompt.encode()).digest()[0] < 26 for p in test)
    assert not set(prompts[:800]) & {p.prompt for p in test}


@pytest.mark.parametrize("modulus", [5, 8])
def test_neither_a_constant_nor_the_last_line_alone_tells_the_answer(modulus: int) -> None:
    problems = DeriveAndVerify(min_variables=4, max_variables=5, modulus=modulus).problems(4000, 0, "train")
    by_last_step: dict[str, Counter[str]] = {}
    for problem in problems:
        _, _, step = problem.prompt.split(";")[-2].partition("=")
        own = "itself" if step[-1].isalpha() else step[-1]
        by_last_step.setdefault(step[1] + own, Counter())[problem.answer] += 1
    constant = sum(by_last_step.values(), Counter()).most_common(1)[0][1]
    guessed = sum(answers.most_common(1)[0][1] for answers in by_last_step.values())
    assert constant / 4000 < 1 / modulus + 0.02 and guessed / 4000 < 1 / modulus + 0.06


def test_more_verification_moves_the_first_answer_forward() -> None:
    shares = [first_answer_share(DeriveAndVerify(num_checks=n).problems(50, 0, "train")) for n in (0, 1, 2)]
    assert shares[0] > 0.6 > shares[1] > 0.3 > shares[2]


@pytest.mark.slow
def test_a_world_that_is_too_small_says_so() -> None:
    small = DeriveAndVerify(min_variables=2, max_variables=2, num_names=2, modulus=2)
    with pytest.raises(SettingsError, match=r"500 distinct train problems were asked for and \d+ found; widen"):
        small.problems(500, 0, "train")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(SettingsError, match="they must ascend"):
        validate(DeriveAndVerify, {"min_variables": 5, "max_variables": 3}, "world")
