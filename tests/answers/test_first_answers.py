"""First-answer positions, against 217 real traces that were read and labelled by hand (see docs/audit.md)."""

import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from leadspan.answers.first_answer import Candidates, Gold, find_candidates, gold_of, resolve
from leadspan.answers.grading import MathGrader
from leadspan.models.reading import load_tokenizer
from leadspan.traces.read import read_traces
from leadspan.traces.records import Trace
from leadspan.traces.settings import TraceSource
from leadspan.worlds.problems import DeriveAndVerify, Multiplication, World
from leadspan.worlds.word_problems import WordProblems

HERE = Path(__file__).parent
NEAR_TOKENS = 40


@pytest.mark.parametrize(
    ("gold", "answer", "found"),
    [
        ("12", "so \\boxed{13}", Gold("12", "record")),
        ("$\\boxed{12}$", "", Gold("12", "record")),
        ("2 + 2 = 4\n#### 4", "", Gold("4", "record")),
        (None, "so \\boxed{13}, I mean \\boxed{\\frac12}", Gold("\\frac12", "own boxed answer")),
        ("   ", "so \\boxed{13}", Gold("13", "own boxed answer")),
        ("A solution of many words. " * 20, "so \\boxed{13}", Gold("13", "own boxed answer")),
        (None, "42 apples", Gold("42 apples", "own answer")),
        (None, "It cannot be told.", Gold("", "none")),
        (None, "\\boxed{}", Gold("", "none")),
    ],
)
def test_where_the_right_answer_comes_from(gold: str | None, answer: str, found: Gold) -> None:
    assert gold_of(Trace((), "", answer, gold)) == found


@pytest.mark.parametrize(
    "gold", ["", " ", "\\boxed{", "((((", "\\frac{1}{0}", "9" * 5000, "\\text{}", "∅", "(C)", "x=", ","]
)
def test_absurd_golds_do_no_harm(gold: str) -> None:
    cot = "So it is 5. Therefore (C) = \\frac{1}{0}, and 9 = x. Answer: ∅."
    assert isinstance(find_candidates(cot, "What is it?", Gold(gold, "record")), Candidates)


def test_no_gold_states_nothing() -> None:
    assert find_candidates("So it is 5.", "What?", Gold("", "none")).candidates == ()


def test_a_choice_is_stated_by_its_letter_or_by_its_text() -> None:
    question = "Which shape is it?\n(A) Line\n(B) Circle\n(C) Plane"
    for cot, at in (("It is indeed a plane. So the answer is (C).", "plane"), ("So the answer is (C), a plane.", "C)")):
        found = find_candidates(cot, question, Gold("\\text{(C)}", "record")).candidates
        assert cot[found[0].start :].startswith(at)


@pytest.mark.parametrize(
    "question",
    ["Second? (A) $A$ (B) $B$ (C) $C$", "Second? (A) A. (B) B.", "Is it (B) or (C)?", "(B) " * 3_000],
    ids=["a letter in dollars", "a letter with a full stop", "named, not given", "repeated"],
)
def test_a_choice_without_a_text_is_stated_by_its_letter(question: str) -> None:
    cot = "One or the other. The answer is (B)."
    [candidate] = find_candidates(cot, question, Gold("B", "record")).candidates
    assert candidate.start == cot.index("B")
    [text] = find_candidates("So it is 12.", f"{question}\n(B) 12", Gold("B", "record")).candidates
    assert text.start == len("So it is ")


def test_algebra_settles_what_spelling_leaves_open() -> None:
    found = [
        find_candidates("Y = \\frac{1}{a - s}. So Y = \\frac{1}{a + s}.", "?", Gold("\\frac{1}{s+a}", "record")),
        find_candidates("The range is [0, 5]. No, it is (0, 5].", "?", Gold("(0,5]", "record")),
        find_candidates("Nothing here.", "?", Gold("(0,5]", "record")),
    ]
    with MathGrader(1) as grader:
        first, num_undecided = resolve(found, grader)
    assert (first[0], first[2], num_undecided) == (1, None, 0)
    assert first[1] is not None and found[1].candidates[first[1]].text == "(0, 5]"


def test_a_list_in_another_order_comes_before_the_same_list_spelt_as_the_gold() -> None:
    cot = "So the roots are 7, 5, 3. In order they are 3, 5, 7."
    found = find_candidates(cot, "What are the roots?", Gold("3, 5, 7", "record")).candidates
    assert [(candidate.text, candidate.is_equal) for candidate in found] == [("7, 5, 3", False), ("3, 5, 7", True)]


@pytest.mark.parametrize("world", [DeriveAndVerify(), Multiplication(), WordProblems(num_checks=3)])
def test_the_first_statement_of_a_generated_problem_is_where_its_derivation_ends(world: World) -> None:
    for problem in world.problems(300, 0, "train"):
        (found,) = find_candidates(problem.cot, problem.prompt, Gold(problem.answer, "record")).candidates
        assert problem.derivation.rindex("=") < found.start < len(problem.derivation), problem.cot


def labels() -> list[dict[str, str | int]]:
    return [json.loads(line) for line in (HERE / "first_answers.jsonl").read_text().splitlines()]


def known_disagreements() -> dict[str, str]:
    rows = (json.loads(line) for line in (HERE / "disagreements.jsonl").read_text().splitlines())
    return {row["place"]: row["why"] for row in rows}


def real_traces(shared: Path) -> dict[str, Trace]:
    items = read_traces(TraceSource(path=str(shared / "traces")))
    return {item.place: item for item in items if isinstance(item, Trace)}


def is_near(cot: str, one: int, other: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Within 40 tokens of each other, or in the same or in neighbouring sentences."""
    between = cot[min(one, other) : max(one, other)]
    return len(re.findall(r"[.?!](?=\s)|\n+", between)) <= 1 or len(tokenizer.tokenize(between)) <= NEAR_TOKENS


@pytest.mark.shared
def test_labels_stand_where_they_say(shared: Path) -> None:
    traces = real_traces(shared)
    assert len({label["place"] for label in labels()}) == len(labels()) >= 50
    for label in labels():
        if label["outcome"] == "found":
            cot, at = traces[str(label["place"])].cot, int(label["position"])
            text = f"{label['before']}{label['answer']}{label['after']}"
            assert cot[at - len(str(label["before"])) :].startswith(text), label["place"]


@pytest.mark.shared
@pytest.mark.slow
def test_agreement_with_labels_of_real_traces(shared: Path) -> None:
    traces, tokenizer = real_traces(shared), load_tokenizer(str(shared / "tokenizer-qwen3"))
    rows = labels()
    labelled = [traces[str(row["place"])] for row in rows]
    found = [find_candidates(t.cot, t.messages[-1]["content"], gold_of(t)) for t in labelled]
    with MathGrader(2) as grader:
        first, _ = resolve(found, grader)
    differing: set[str] = set()
    for row, trace, candidates, i in zip(rows, labelled, found, first, strict=True):
        at, wanted = None if i is None else candidates.candidates[i].start, row.get("position")
        agrees = at is None and wanted is None
        if at is not None and wanted is not None:
            agrees = is_near(trace.cot, at, int(wanted), tokenizer)
        if not agrees:
            differing.add(str(row["place"]))
    assert differing == set(known_disagreements())
    assert 1 - len(differing) / len(rows) >= 0.9
