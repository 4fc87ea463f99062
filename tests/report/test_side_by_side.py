import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leadspan.report.content import build_report
from leadspan.report.inputs import ReportInputs, read_inputs
from leadspan.report.samples import HEAD_CHARS, TAIL_CHARS, Comparison
from leadspan.report.write import report_text
from leadspan.results import RunResult

MakeRun = Callable[..., RunResult]
Rows = Sequence[tuple[str, bool, int]]
"""Problem, whether right, tokens."""


def with_samples(gathered: ReportInputs, number: int, rows: Rows, **changes: Any) -> None:
    path = gathered.directories[number] / "samples" / "toy.jsonl"
    path.parent.mkdir()
    with path.open("w") as file:
        for problem, is_right, tokens in rows:
            row = {
                "problem_id": problem, "sample": 0, "weights_hash": "abc", "prompt": f"{problem}?", "gold": "7",
                "text": f"so {problem} " + ("is 7" if is_right else "is 8"), "num_tokens": tokens,
                "finish_reason": "stop", "strict": "right" if is_right else "wrong",
                "extracted": "7" if is_right else "8", **changes,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def pair(make_run: MakeRun, gathered_of: Callable[..., ReportInputs]) -> ReportInputs:
    """An uncut and a cut run, the places of their samples told, none written yet."""
    runs = [make_run("full", 30, {"kind": "full"}), make_run("lead 0.5", 15, cost=0.5)]
    told = [
        [found.model_copy(update={"samples_file": "samples/toy.jsonl"}) for found in run.evaluations] for run in runs
    ]
    return gathered_of([run.model_copy(update={"evaluations": new}) for run, new in zip(runs, told, strict=True)])


FULL_ROWS = [("a", True, 10), ("b", True, 10), ("c", False, 10), ("d", True, 10), ("e", True, 10), ("f", False, 10)]
CUT_ROWS = [("a", False, 12), ("b", False, 40), ("c", True, 10), ("d", True, 11), ("e", True, 90), ("f", False, 9)]


def compared(gathered: ReportInputs, number: int = 4) -> Comparison:
    (found,) = build_report(gathered, samples_per_policy=number).comparisons
    return found


def test_pairs_are_counted_and_chosen_by_the_rule(pair: ReportInputs) -> None:
    with_samples(pair, 0, FULL_ROWS)
    with_samples(pair, 1, CUT_ROWS)
    found = compared(pair, 5)
    assert (found.task, found.uncut, found.cut) == ("toy", "full", "lead 0.5")
    assert found.counts == {
        "only the uncut right": 2, "only the cut right": 1, "both wrong": 1, "both right": 2
    }  # fmt: skip
    assert [(shown.problem_id, shown.outcome) for shown in found.pairs] == [
        ("b", "only the uncut right"), ("c", "only the cut right"), ("f", "both wrong"), ("e", "both right"),
        ("a", "only the uncut right"),
    ]  # fmt: skip
    first = found.pairs[0]
    assert (first.uncut.extracted, first.cut.extracted, first.cut.num_tokens) == ("7", "8", 40)
    assert first.uncut.num_shared == len("so b is ") and first.prompt == "b?" and first.gold == "7"


def test_samples_stand_beside_those_of_the_uncut_run_of_their_task(
    make_run: MakeRun, gathered_of: Callable[..., ReportInputs]
) -> None:
    """The cut run is compared with `near` on one task, and on the other with `far`, which alone was evaluated on it."""
    runs = [
        make_run("full", 30, {"kind": "full"}, name="near"),
        make_run("full", 30, {"kind": "full"}, name="far", tasks=["toy", "new"], settings={"training": {"steps": 6}}),
        make_run("lead 0.5", 15, cost=0.5, tasks=["toy", "new"]),
    ]
    for number, run in enumerate(runs):
        stored = [each.model_copy(update={"samples_file": "samples/toy.jsonl"}) for each in run.evaluations]
        runs[number] = run.model_copy(update={"evaluations": stored})
    inputs = gathered_of(runs)
    for number in range(3):
        with_samples(inputs, number, FULL_ROWS)
    shown = [(pair.task, pair.uncut) for pair in build_report(inputs).comparisons if pair.cut == "lead 0.5"]
    assert shown == [("toy", "full (near)"), ("new", "full (far)")]


def test_none_are_read_when_none_are_asked_for(pair: ReportInputs) -> None:
    assert build_report(pair, samples_per_policy=0).comparisons == []


def test_samples_and_metrics_that_are_not_there_are_told(pair: ReportInputs) -> None:
    with_samples(pair, 0, FULL_ROWS)
    report = build_report(pair)
    assert report.comparisons == []
    assert report.absent == [
        "full: no metrics.jsonl, so no curves",
        "lead 0.5: no metrics.jsonl, so no curves",
        "lead 0.5: its samples on toy are missing",
    ]
    assert "Files that are missing (3)" in report_text(report, "html")


def test_samples_whose_path_cannot_be_looked_at_are_missing(pair: ReportInputs) -> None:
    with_samples(pair, 0, FULL_ROWS)
    full, cut = pair.runs
    too_long = [result.model_copy(update={"samples_file": "x" * 300}) for result in cut.evaluations]
    changed = replace(pair, runs=(full, cut.model_copy(update={"evaluations": too_long})))
    assert "lead 0.5: its samples on toy are missing" in build_report(changed).absent


def test_long_texts_keep_both_ends_and_say_what_is_left_out(pair: ReportInputs) -> None:
    text = "x" * HEAD_CHARS + "y" * 1234 + "z" * TAIL_CHARS
    with_samples(pair, 0, FULL_ROWS, text=text)
    with_samples(pair, 1, CUT_ROWS, text="x")
    answer = compared(pair).pairs[0].uncut
    assert (set(answer.text), len(answer.text)) == ({"x"}, HEAD_CHARS)
    assert (set(answer.end), answer.num_left_out) == ({"z"}, 1234)
    assert "1,234 characters left out" in report_text(build_report(pair), "html")


def test_what_students_wrote_is_escaped(pair: ReportInputs) -> None:
    with_samples(pair, 0, FULL_ROWS, text="<img src=x onerror=alert(1)>", extracted="<b>")
    with_samples(pair, 1, CUT_ROWS, prompt="</pre><script>alert(2)</script>")
    page = report_text(build_report(pair), "html")
    assert "<img" not in page and "<script>alert(2)" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page.replace('<span class="same"></span>', "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"weights_hash": "xyz"}, "drawn from weights xyz, but the results of lead", id="other weights"),
        pytest.param({"num_tokens": None, "strict": None, "problem_id": []}, "line 1 is no graded sample", id="broken"),
        pytest.param({"text": 3}, "line 1 is no graded sample", id="no text"),
        pytest.param({"num_tokens": -3}, "line 1 is no graded sample", id="below nothing"),
    ],
)  # fmt: skip
def test_samples_of_something_else_are_refused(pair: ReportInputs, changes: dict[str, Any], message: str) -> None:
    with_samples(pair, 0, FULL_ROWS)
    with_samples(pair, 1, CUT_ROWS, **changes)
    report = build_report(pair)
    assert report.comparisons == []
    (reason,) = report.damaged
    assert reason.startswith(str(pair.directories[1] / "samples" / "toy.jsonl")) and message in reason


@pytest.mark.slow
def test_real_students_stand_side_by_side_seed_by_seed(real_runs: list[Path]) -> None:
    (found,) = build_report(read_inputs(real_runs)).comparisons
    assert (found.uncut, found.cut, found.policy) == ("full (seed 0)", "lead 0.6 (seed 0)", "lead 0.6")
    assert sum(found.counts.values()) == 3 and len(found.pairs) == 3
    rows = [json.loads(line) for line in (real_runs[1] / "samples" / "toy.jsonl").read_text().splitlines()]
    texts = {row["problem_id"]: row["text"] for row in rows}
    assert all(shown.cut.text == texts[shown.problem_id] for shown in found.pairs)
