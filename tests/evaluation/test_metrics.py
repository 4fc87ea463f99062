from itertools import combinations

import numpy as np
import pytest

from leadspan.answers.equality import normalise
from leadspan.answers.grading import Verdict
from leadspan.evaluation.evaluate import Graded, evaluation_result, majority_at, pass_at
from leadspan.evaluation.sampling import Sample
from leadspan.evaluation.settings import SamplingSettings, TaskSettings
from leadspan.evaluation.subject import StoredSample


def graded(answer: str | None, right: bool, number: int = 0, problem: str = "p", **more: object) -> Graded:
    ended = more.get("ended", "stop")
    sample = Sample("", int(more.get("tokens", 10)), ended, bool(more.get("loops", False)))  # type: ignore[arg-type]
    outcome = "right" if right else "wrong" if answer else "no_answer"
    stored = StoredSample(problem, number, "prompt", sample, bool(more.get("closed", True)), 0.5)
    return Graded(stored, Verdict(outcome, outcome, answer), answer is not None)


def problem(*answers: tuple[str | None, bool], name: str = "p") -> list[Graded]:
    return [graded(answer, right, number, name) for number, (answer, right) in enumerate(answers)]


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    correct = [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]]
    found = pass_at(correct)
    assert list(found) == ["1", "2", "4", "5"]
    for k in (1, 2, 4, 5):
        each = [np.mean([any(subset) for subset in combinations(scores, k)]) for scores in correct]
        assert found[str(k)].value == pytest.approx(np.mean(each))
    assert found["1"].value == pytest.approx(np.mean(correct))
    assert pass_at([[1], [0]]) == {}


def test_pass_at_k_is_exact_for_many_samples() -> None:
    # 1 of 64 right: pass@64 is 1 and pass@32 is a half
    found = pass_at([[1] + [0] * 63])
    assert found["64"].value == 1 and found["32"].value == pytest.approx(0.5)


def test_majority_of_all_samples() -> None:
    votes = problem(("5", True), ("5.0", True), ("6", False), ("7", False), (None, False))
    assert majority_at([votes])["5"].value == 1
    tied = problem(("1/2", True), ("3", False), ("0.5", True), ("3", False))
    assert majority_at([tied])["4"].value == 0.5
    outvoted = problem(("5", True), ("6", False), ("6", False))
    assert majority_at([outvoted])["3"].value == 0
    assert majority_at([problem((None, False), (None, False))])["2"].value == 0


def test_votes_for_one_letter_are_counted_together() -> None:
    votes = problem(("B", True), (r"\text{(B)}", True), ("B. green", True), ("A", False), ("A", False))
    assert majority_at([votes], has_choices=True)["5"].value == 1
    assert majority_at([votes[1:]])["4"].value == 0  # without choices `B. green` is another answer
    assert majority_at([[*votes[:2], votes[3]]])["3"].value == 1


def test_majority_of_fewer_is_the_mean_over_subsets() -> None:
    votes = problem(("5", True), ("5", True), ("6", False), ("7", False))
    # pairs: 5-5 wins (1 of 6), 5-6 and 5-7 are ties of half (4 of 6), 6-7 loses
    assert majority_at([votes])["2"].value == pytest.approx((1 + 4 * 0.5) / 6, abs=0.04)


def test_unfinished_samples_have_no_vote() -> None:
    votes = [graded("5", True, 0), graded("6", False, 1, ended="length"), graded("6", False, 2, closed=False)]
    assert majority_at([votes])["3"].value == 1


def test_normalise() -> None:
    same = ["1/2", "0.5", "\\frac{1}{2}", "\\dfrac12", "x = 0.50", "$\\frac{2}{4}$", "\\text{0.5}"]
    assert {normalise(text) for text in same} == {"1/2"}
    assert normalise("1{,}234,567") == normalise("1234567") == "1234567"
    assert normalise("(1, 200)") == "(1,200)"
    assert normalise("12^{th}") == "12"
    assert [normalise(text) for text in (".5", "5", "5 million")] == ["1/2", "5", "5000000"]
    assert normalise("1/0") == "1/0"
    assert normalise("9" * 5000) == "9" * 5000
    assert len({normalise(text) for text in ("17.5", "17.5\\%", "(1,2)", "[1,2]", "-1")}) == 5


def test_figures_of_a_result() -> None:
    first = [graded("5", True, 0, "a", tokens=10), graded("5", True, 1, "a", tokens=30)]
    second = [
        graded(None, False, 0, "b", tokens=100, ended="length", loops=True, closed=False),
        graded("6", False, 1, "b", tokens=60),
    ]
    found = evaluation_result(TaskSettings(name="t", path="x"), [first, second], SamplingSettings(), "m", "h")
    assert (found.num_problems, found.samples_per_problem) == (2, 2)
    assert found.accuracy_strict.value == 0.5
    assert found.accuracy_finished is not None and found.accuracy_finished.value == pytest.approx(2 / 3)
    assert found.termination_rate.value == 0.75
    assert (found.cap_hit_rate, found.loop_rate, found.no_box_rate, found.thinking_closed_rate) == (
        0.25,
        0.25,
        0.25,
        0.75,
    )
    assert (found.tokens_mean, found.tokens_p50, found.tokens_p95) == pytest.approx((50, 45, 94))
    assert found.correct == {"a": [1, 1], "b": [0, 0]}
    assert found.terminated == {"a": [1, 1], "b": [0, 1]}
    assert found.outcomes == {"right": 2, "no_answer": 1, "wrong": 1}
    exact = TaskSettings(name="t", path="x", grader="exact")
    assert evaluation_result(exact, [first], SamplingSettings(), "m", "h").no_box_rate is None
