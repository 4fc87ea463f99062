"""Grading inside EleutherAI's lm-evaluation-harness: the functions that the task files of `leadspan export` call.

The harness draws the answers and calls one of the functions of this module for each problem, so that an exported task
is graded as `leadspan evaluate` grades it. Two things differ. The harness does not pass on how an answer ended, so an
answer that closes its thinking counts as finished even where the cap on new tokens cut it off later. And its random
streams are not those of `SeededSampling`.
"""

import atexit
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from leadspan.answers.boxes import is_thinking_closed, with_usual_tags
from leadspan.answers.grading import GradeItem, MathGrader, Verdict, exact_grade, literal_grade
from leadspan.evaluation.choices import choice_grade

METRICS = ("accuracy_strict", "accuracy_flexible", "thinking_closed")
"""The metrics that the functions return for a problem: means over its samples."""


def _by(grade: Callable[[list[GradeItem]], list[Verdict]]) -> Callable[..., dict[str, float]]:
    """The harness's function of a grader: means over the samples of one problem."""

    def results(doc: Mapping[str, Any], results: Sequence[str | list[str]]) -> dict[str, float]:
        # `doc` is a line of the exported problems; a task that repeats has its texts in one list.
        texts = [text for result in results for text in ([result] if isinstance(result, str) else result)]
        # The tags of the run's template, which differ from model to model.
        tags = doc["think_open"], doc["think_close"]
        closed = [is_thinking_closed(text, doc["prompt"], *tags) for text in texts]
        choices = tuple(doc.get("choices") or ())
        items = [
            GradeItem(with_usual_tags(text, is_closed, *tags), doc["gold"], is_closed, choices)
            for text, is_closed in zip(texts, closed, strict=True)
        ]
        verdicts = grade(items)
        # Booleans count as 0 and 1: the harness then averages the means of all problems.
        sums = {
            "accuracy_strict": sum(verdict.strict == "right" for verdict in verdicts),
            "accuracy_flexible": sum(verdict.flexible == "right" for verdict in verdicts),
            "thinking_closed": sum(closed),
        }
        return {name: sums[name] / len(texts) for name in METRICS}

    return results


@cache
def _grader() -> MathGrader:
    grader = MathGrader(item_seconds=10.0)
    grader.__enter__()
    # The harness offers no hook at its end, and processes left running would keep it from ending.
    atexit.register(grader.__exit__, None, None, None)
    return grader


math_results = _by(lambda items: _grader().grade(items))
"""Grades with Math-Verify in killable processes, which run until the harness ends."""
exact_results = _by(lambda items: list(map(exact_grade, items)))
"""Grades by equality with the reference."""
choice_results = _by(lambda items: list(map(choice_grade, items)))
"""Grades the letter of a choice."""
literal_results = _by(lambda items: list(map(literal_grade, items)))
"""Grades by equality as Python literals."""
reasoning_gym_results = _by(lambda items: _grader().grade_by_verifier(items))
"""Grades by the verifier of the data set that generated the problem; the gold is the data set's entry."""
