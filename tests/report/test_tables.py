import io
import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.data.truncation.policy import STOP_REMEDY
from leadspan.report.captions import captions, cuts_explained, retention_text, sample_size
from leadspan.report.content import Report, warnings_on
from leadspan.report.document import rows_block
from leadspan.report.frontier import build_frontiers
from leadspan.report.rows import Frontier, error_text
from leadspan.report.write import print_report, report_text, run_summary
from leadspan.results import Prediction, RunResult
from leadspan.statistics.intervals import Interval
from leadspan.tables import (
    Block,
    Cell,
    CostName,
    markdown_table,
    percent_interval,
    points,
    print_block,
    quantity,
    rich_table,
)

MakeRun = Callable[..., RunResult]
ReportOf = Callable[..., Report]
FULL = {"kind": "full"}
MIX = {"kind": "mix", "whole_share": 0.1, "policy": {"kind": "lead_answer", "p_range": [0.5, 0.75]}}
SNAPSHOTS = Path(__file__).with_name("snapshots")


def only(runs: list[RunResult]) -> Frontier:
    (frontier,) = build_frontiers(runs)
    return frontier


def in_terminal(report: Report, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        print_report(report, console)
    return [line.rstrip() for line in capture.get().splitlines()]


def check_snapshot(name: str, text: str) -> None:
    """Hold a rendering against the stored one; `UPDATE_SNAPSHOTS=1 pytest tests/report/test_tables.py` stores it."""
    if os.environ.get("UPDATE_SNAPSHOTS"):
        (SNAPSHOTS / name).write_text(text, encoding="utf-8")
    assert text == (SNAPSHOTS / name).read_text(encoding="utf-8")


@pytest.fixture
def several(study: list[RunResult], make_run: MakeRun) -> list[RunResult]:
    """The study with a mix, and a control of the cut."""
    window = {"kind": "random_window", "p": 0.5}
    return [
        *study,
        make_run("mix 0.9 lead_answer 0.5 to 0.75", 28, MIX, cost=0.55, ended=0.99),
        make_run("random_window 0.5", 4, window, cost=0.5, control="random_window"),
    ]


def test_the_terminal_is_as_it_was(several: list[RunResult], report_of: ReportOf) -> None:
    check_snapshot("terminal.txt", "\n".join(in_terminal(report_of(several), 120)) + "\n")


def test_markdown_is_as_it_was(several: list[RunResult], report_of: ReportOf) -> None:
    check_snapshot("report.md", report_text(report_of(several), "md"))


def test_a_cut_that_dropped_most_examples_is_said_on_the_page(several: list[RunResult], report_of: ReportOf) -> None:
    student = next(run for run in several if run.label == "lead 0.5")
    assert student.cut is not None
    few = student.cut.model_copy(update={"num_kept": 6, "dropped": {"no weighted position is left": 35}})
    changed = [run.model_copy(update={"cut": few}) if run is student else run for run in several]
    said = f"{student.label} leaves 6 of 41 examples (35 x no weighted position is left)"
    assert said in report_text(report_of(changed), "md") and said not in report_text(report_of(several), "md")


def test_a_cut_that_no_rollout_has_is_not_said_to_have_dropped_examples(make_run: MakeRun, report_of: ReportOf) -> None:
    rollout = {"rollout": {"horizon": {"kind": "fixed", "tokens": 8}}, "loss": {"kl_weight": 1}}
    run = make_run("rollout 8", 9, settings=rollout)
    assert run.cut is not None  # as in results of earlier versions
    few = run.cut.model_copy(update={"num_kept": 6, "dropped": {"no weighted position is left": 35}})
    assert "leaves 6 of" not in report_text(report_of([run.model_copy(update={"cut": few})]), "md")


def test_the_text_of_the_page_is_as_it_was(several: list[RunResult], page_of: Callable) -> None:
    visible = re.sub(r"<(script|style|pre)\b.*?</\1>", "", page_of(several).source, flags=re.DOTALL)
    lines = (" ".join(unescape(re.sub(r"<[^>]+>", " ", line)).split()) for line in visible.splitlines())
    check_snapshot("page.txt", "\n".join(line for line in lines if line) + "\n")


def test_shares_and_differences_are_written_with_their_intervals() -> None:
    assert percent_interval(Interval(value=0.456, low=0.4, high=0.517)) == "46 [40, 52] %"
    assert points(Interval(value=-0.04, low=-0.09, high=0.012)) == "-4 [-9, +1] points"
    assert points(Interval(value=-0.001, low=-0.02, high=0.0)) == "+0 [-2, +0] points"
    assert percent_interval(Interval(value=0.01, low=-0.001, high=0.03)) == "1 [0, 3] %"


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("seconds", 0.25, "0.25 s"),
        ("seconds", 90.0, "90 s"),
        ("seconds", 9000.0, "2.5 h"),
        ("peak_memory_bytes", 3 * 2**29, "1.5 GiB"),
        ("flops", 4.951e12, "4.95 TFLOP"),
        ("flops", 0, "0 FLOP"),
        ("tokens", 644_000, "644 k"),
        ("tokens", 12, "12"),
    ],
)
def test_costs_are_written_in_a_unit_that_reads_well(cost: CostName, value: float, text: str) -> None:
    assert quantity(cost, value) == text


def test_a_block_is_the_same_in_markdown_and_in_a_terminal() -> None:
    block = Block("Costs", ("name", "cost"), (("a|b [red]", Cell("1 k", 1000.0)), ("<i>", "2")), note="Of all.")
    assert markdown_table(block).splitlines() == [
        "| name | cost |", "| :-- | --: |", "| a\\|b [red] | 1 k |", "| &lt;i&gt; | 2 |"
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=40)
    with console.capture() as capture:
        console.print(rich_table(block))
    words = [line.split() for line in capture.get().splitlines()]
    assert words[0] == ["Costs"] and words[3] == ["a|b", "[red]", "1", "k"] and words[-1] == ["Of", "all."]
    assert markdown_table(Block("", ("a",), ())) == ""
    assert markdown_table(Block("", (), (("name", "value"),))).splitlines()[0] == "|  |  |"


def test_a_terminal_narrower_than_a_table_loses_none_of_it() -> None:
    block = Block(
        "Costs", ("policy", *["largest batch"] * 9), (("lead 0.5", *["123.45 TFLOP"] * 9),), "A note of words."
    )
    console = Console(file=io.StringIO(), width=40)
    with console.capture() as capture:
        print_block(block, console)
    shown = capture.get()
    assert [shown.count(word) for word in ("largest", "batch", "123.45 TFLOP")] == [9, 9, 9]
    assert max(map(len, shown.splitlines())) == 8 + 9 * 14  # each number with two blanks before it


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits_and_shows_numbers_whole(
    several: list[RunResult], report_of: ReportOf, width: int
) -> None:
    lines = in_terminal(report_of(several), width)
    assert max(map(len, lines)) <= width
    lead = next(line for line in lines if line.startswith("lead 0.5"))
    assert "38 [32, 44] %" in lead and "53 [48, 58] %" in lead and "50 %" in lead
    assert ("Memory" in "\n".join(lines)) == (width >= 110)


def test_costs_are_absolute_where_there_is_no_uncut_run(make_run: MakeRun, report_of: ReportOf) -> None:
    (task,) = report_of([make_run("lead 0.5", 20)]).tasks
    assert rows_block(task, task.rows, "", width=120).rows[0][4:8] == ("1 k", "10 s", "200 B", "400 FLOP")


def test_a_spread_over_seeds_goes_with_the_mean(make_run: MakeRun, report_of: ReportOf) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)]
    runs += [make_run("lead 0.5", 15, seed=seed, cost=cost) for seed, cost in ((0, 0.4), (1, 0.6))]
    (task,) = report_of(runs).tasks
    assert task.sample_size == "40 problems x 1 sample x 2 seeds"
    block = rows_block(task, task.rows, "")
    time = dict(zip(block.header, block.rows[1], strict=True))["Training time"]
    assert time == "50 ± 14 % (5 s)"  # 0.4 and 0.6: mean 0.5, standard deviation 0.1414


def test_a_refused_retention_shows_the_difference_and_the_reason(make_run: MakeRun) -> None:
    frontier = only([make_run("full", 0, FULL), make_run("lead 0.5", 4, cost=0.5)])
    assert retention_text(frontier.rows[1]).startswith("+10 [")
    assert any("the full student's accuracy" in caption for caption in captions(frontier))


@pytest.mark.parametrize(("num_right", "is_warned"), [(290, True), (300, False), (360, False)])
def test_a_teacher_below_its_student_is_warned_about(make_run: MakeRun, num_right: int, is_warned: bool) -> None:
    teacher = make_run("oracle", num_right, role="teacher", num_problems=400)
    warnings = warnings_on(only([teacher, make_run("full", 300, FULL, num_problems=400)]))
    assert bool(warnings) == is_warned
    if is_warned:
        assert "oracle 72 [66, 78] %" in warnings[0] and "full 75 [" in warnings[0]
    assert warnings_on(only([teacher, make_run("lead 0.5", 400, num_problems=400)])) == []  # nothing is uncut


def test_students_that_do_not_stop_are_named_with_two_mixes_that_do(make_run: MakeRun, study: list[RunResult]) -> None:
    ended = {0.25: 0.95, 0.5: 0.99, 0.75: 1.0}
    mixes = [
        make_run(f"mix 0.9 lead {p}", 28, {**MIX, "policy": {"kind": "lead", "p": p}}, ended=rate)
        for p, rate in ended.items()
    ]
    (warning,) = warnings_on(only([*study, *mixes]))
    labels = ["lead 0.5 (53 %)", "full (99 %)", "mix 0.9 lead 0.75 ended 100 %", "mix 0.9 lead 0.5 ended 99 %"]
    positions = [warning.index(label) for label in labels]
    assert positions == sorted(positions) and "lead 0.25" not in warning


def test_each_kind_of_run_gets_its_remedy(make_run: MakeRun, study: list[RunResult]) -> None:
    assert STOP_REMEDY in warnings_on(only(study))[0]
    mix = make_run("mix", 10, MIX, ended=0.5)
    supervision = {"supervision": {"answer": 0.0, "cot": 1.0}}
    other = make_run("full", 10, FULL, name="full, CoT", settings=supervision, ended=0.1)
    (warning,) = warnings_on(only([study[2], mix, other, make_run("tail 0.5", 20, {"kind": "tail", "p": 0.5})]))
    assert "mix (50 %), full, CoT (10 %)" in warning and "append_eos" not in warning
    assert "(cut.whole_share)" in warning and "(supervision.answer)" in warning


def test_students_of_rollouts_get_a_remedy_of_their_own_and_are_explained(make_run: MakeRun) -> None:
    loss, horizons = (
        {"kl_weight": 1},
        {"whole": {"kind": "share", "share": 1}, "short": {"kind": "fixed", "tokens": 16}},
    )
    for cut, share, learnt in ((FULL, 0, ""), ({"kind": "lead", "p": 0.5}, 0.5, ", and from the first 50 % of the")):
        runs = [
            make_run(name, 30, cut, ended=0.2 if name == "short" else 1.0, settings={"rollout": rollout, "loss": loss})
            for name, horizon in horizons.items()
            for rollout in [{"horizon": horizon, "trace_share": share}]
        ]
        frontier = only(runs)
        (warning,) = warnings_on(frontier)
        assert "short (20 %)" in warning and "rollout.whole_share" in warning and "cut" not in warning
        (sentence,) = cuts_explained(frontier.rows)
        assert sentence.startswith(f"`whole` learnt from rollouts, which it drew itself{learnt}")
        assert frontier.notes == (
            "short: besides the cut, these settings differ from those of whole: rollout.horizon.",
        )  # fmt: skip


def test_students_of_several_uncut_runs_share_a_remedy(make_run: MakeRun) -> None:
    slow = {"settings": {"training": {"learning_rate": 1e-6}}}
    runs = [make_run("full", 30, FULL), make_run("lead 0.5", 3, ended=0.0)]
    runs += [make_run("full", 30, FULL, name="full, slow", **slow)]
    runs += [make_run("lead 0.5", 3, name="lead 0.5, slow", ended=0.1, **slow)]
    (warning,) = warnings_on(only(runs))
    assert warning == (
        f"lead 0.5 (0 %) ended far fewer answers than full (100 %); "
        f"lead 0.5, slow (10 %) ended far fewer answers than full, slow (100 %); {STOP_REMEDY}."
    )


def test_students_that_end_as_often_as_their_uncut_run_are_not_warned_about(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, ended=0.6), make_run("lead 0.5", 15, ended=0.55)]
    (warning,) = warnings_on(only([*runs, make_run("base", 5, role="base", ended=0.1)]))
    assert "full" in warning and "60 %" in warning and "40 %" in warning and "max_new_tokens" in warning
    assert "lead 0.5" not in warning
    assert warnings_on(only([make_run("full", 30, FULL, ended=0.9)])) == []


def test_a_cut_without_ends_explains_that_a_student_compared_with_none_does_not_end(make_run: MakeRun) -> None:
    run = make_run("lead 0.5", 3, ended=0.0)
    assert run.cut is not None
    without = run.cut.model_copy(update={"num_kept": 40, "lost_stop": 39})
    (warning,) = warnings_on(only([run.model_copy(update={"cut": without})]))
    assert "ended 0 % of its answers" in warning and STOP_REMEDY in warning
    with_some = run.cut.model_copy(update={"num_kept": 40, "lost_stop": 38})
    assert STOP_REMEDY not in warnings_on(only([run.model_copy(update={"cut": with_some})]))[0]


def test_ten_points_that_may_be_chance_are_no_warning(make_run: MakeRun) -> None:
    runs: list[RunResult] = []
    for label, cut, lost in (("full", FULL, (3,)), ("lead 0.5", {"kind": "lead", "p": 0.5}, (4, 7))):
        run = make_run(label, 5, cut, ended=1 - len(lost) / 10, num_problems=10)
        terminated = {f"p{i}": [int(i not in lost)] for i in range(10)}
        result = run.evaluations[0].model_copy(update={"terminated": terminated})
        runs.append(run.model_copy(update={"evaluations": [result]}))
    assert warnings_on(only(runs)) == []
    bare = [
        run.model_copy(update={"evaluations": [run.evaluations[0].model_copy(update={"terminated": {}})]})
        for run in runs
    ]
    assert len(warnings_on(only(bare))) == 1  # single answers are not known


def test_one_problem_is_no_problems_and_a_small_error_has_no_minus(make_run: MakeRun) -> None:
    (frontier,) = build_frontiers([make_run("full", 1, num_problems=1)])
    assert sample_size(frontier) == "1 problem x 1 sample"
    assert (error_text(998, 1000), error_text(980, 1000), error_text(None, 1000)) == ("+0 %", "-2 %", "\N{EN DASH}")


@pytest.mark.parametrize(("process", "what"), [(0, "; predicted: its tensors alone"), (50, "")])
def test_a_summary_says_what_its_predicted_memory_is_of(make_run: MakeRun, process: int, what: str) -> None:
    memory = MemoryByPart(weights=100, process=process)
    prediction = Prediction(num_steps=5, num_tokens=1, num_weighted_tokens=1, flops=FlopsByPart(), memory=memory)
    shown = dict(run_summary(make_run("full", 30).model_copy(update={"prediction": prediction})).rows)["peak memory"]
    assert shown == f"200 B, predicted {100 + process} B ({(process - 100) // 2} %) (process resident set{what})"


def test_a_summary_has_the_loops_of_a_task_without_boxes(make_run: MakeRun) -> None:
    run = make_run("full", 30)
    rates = {"loop_rate": 0.25, "no_box_rate": None}
    loops, both = (
        run.model_copy(update={"evaluations": [run.evaluations[0].model_copy(update=update)]})
        for update in (rates, {**rates, "no_box_rate": 0.5})
    )
    assert ("toy: loops", "25.0 %") in run_summary(loops).rows
    assert ("toy: loops / no box", "25.0 % / 50.0 %") in run_summary(both).rows
