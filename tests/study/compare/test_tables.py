import io
from collections.abc import Callable

import pytest
from rich.console import Console

from leadspan.results import Interval, RunResult
from leadspan.study.compare.frontier import CostName, Frontier, build_frontiers
from leadspan.study.compare.tables import (
    MISSING,
    captions,
    findings,
    kept_text,
    markdown_table,
    percent_interval,
    points,
    print_frontiers,
    quantity,
    recommendation,
    rich_table,
    stop_warnings,
    teacher_warnings,
)

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
MIX = {"kind": "mix", "whole_share": 0.1}


def only(runs: list[RunResult]) -> Frontier:
    (frontier,) = build_frontiers(runs)
    return frontier


def rendered(frontier: Frontier, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(rich_table(frontier, width))
    return [line.rstrip() for line in capture.get().splitlines()]


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


def test_the_finding_states_quality_cost_and_termination(study: list[RunResult]) -> None:
    frontier = only(study)
    assert findings(frontier) == [
        f"lead 0.5 kept {kept_text(frontier.rows[3])} of full's accuracy at 50 % of the tokens and "
        "50 % of the time; it terminated on 53 % of problems (full: 99 %)."
    ]
    assert kept_text(frontier.rows[3]).startswith("50 [")


def test_the_finding_without_an_uncut_run_compares_nothing(make_run: MakeRun) -> None:
    frontier = only([make_run("lead 0.5", 20, ended=0.9)])
    assert findings(frontier) == ["lead 0.5 reached 50 [44, 56] % accuracy; it terminated on 90 % of problems."]
    assert recommendation(frontier) == "No policy can be recommended: none was compared with an uncut run."


def test_a_refused_retention_shows_the_difference_and_the_reason(make_run: MakeRun) -> None:
    frontier = only([make_run("full", 0, FULL), make_run("lead 0.5", 4, cost=0.5)])
    assert kept_text(frontier.rows[1]).startswith("+10 [")
    (finding,) = findings(frontier)
    assert finding.startswith("lead 0.5 scored +10 [") and "(retention refused) at 50 % of the tokens" in finding
    assert any(caption.startswith("Retention refused: the full student's accuracy") for caption in captions(frontier))
    assert recommendation(frontier).startswith("No policy can be recommended: the full student's accuracy")


def test_runs_on_other_problems_are_called_not_comparable(make_run: MakeRun) -> None:
    frontier = only([make_run("full", 30, FULL), make_run("lead 0.5", 10, num_problems=20)])
    assert "lead 0.5 reached 50 [44, 56] % accuracy (not comparable with full)" in findings(frontier)[0]


@pytest.mark.parametrize(("num_right", "is_warned"), [(290, True), (300, False), (360, False)])
def test_a_teacher_is_warned_about_where_it_is_below_its_student(
    make_run: MakeRun, num_right: int, is_warned: bool
) -> None:
    teacher = make_run("oracle", num_right, role="teacher", num_problems=400)
    found = teacher_warnings(only([teacher, make_run("full", 300, FULL, num_problems=400)]))
    assert bool(found) == is_warned
    if is_warned:
        assert found[0].startswith("The teacher solves less than its student: oracle 72 [66, 78] % of toy, full 75 [")
    assert teacher_warnings(only([teacher, make_run("lead 0.5", 400, num_problems=400)])) == []  # nothing is uncut


def test_students_that_do_not_stop_are_named_with_two_mixes_that_do(make_run: MakeRun, study: list[RunResult]) -> None:
    ended = {0.25: 0.95, 0.5: 0.99, 0.75: 1.0}
    mixes = [
        make_run(f"mix 0.9 lead {p}", 28, {**MIX, "policy": {"kind": "lead", "p": p}}, ended=rate)
        for p, rate in ended.items()
    ]
    assert stop_warnings(only([*study, *mixes])) == [
        "lead 0.5 (53 %) ended far fewer answers than full (99 %); mix 0.9 lead 0.75 ended 100 % of its answers, "
        "mix 0.9 lead 0.5 ended 99 % of its answers."
    ]


def test_each_kind_of_run_gets_its_own_remedy(make_run: MakeRun, study: list[RunResult]) -> None:
    whole = "keep some traces whole (cut.kind: mix) or append a stop (stop: append_eos)"
    assert stop_warnings(only(study))[0].endswith(f"than full (99 %); {whole}.")
    mix = make_run("mix", 10, MIX, ended=0.5)
    other = make_run("full", 10, FULL, name="full, CoT", settings={"supervision": {"answer": 0.0}}, ended=0.1)
    (warning,) = stop_warnings(only([study[2], mix, other, make_run("tail 0.5", 20, {"kind": "tail", "p": 0.5})]))
    assert warning.startswith("mix (50 %), full, CoT (10 %) ended far fewer") and whole not in warning
    assert "(cut.whole_share)" in warning and "(supervision.answer)" in warning


def test_students_that_end_as_often_as_their_uncut_run_are_not_warned_about(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, ended=0.6), make_run("lead 0.5", 15, ended=0.55)]
    (warning,) = stop_warnings(only([*runs, make_run("base", 5, role="base", ended=0.1)]))
    assert warning.startswith(
        "full ended only 60 % of its answers, and 40 % ran into the cap on new tokens: raise max_"
    )
    assert "lead 0.5" not in warning and "whole" not in warning
    assert stop_warnings(only([make_run("full", 30, FULL, ended=0.9)])) == []


def test_ten_points_that_may_be_chance_are_no_warning(make_run: MakeRun) -> None:
    runs: list[RunResult] = []
    for label, cut, lost in (("full", FULL, (3,)), ("lead 0.5", {"kind": "lead", "p": 0.5}, (4, 7))):
        run = make_run(label, 5, cut, ended=1 - len(lost) / 10, num_problems=10)
        terminated = {f"p{i}": [int(i not in lost)] for i in range(10)}
        found = run.evaluations[0].model_copy(update={"terminated": terminated})
        runs.append(run.model_copy(update={"evaluations": [found]}))
    assert not any("far fewer" in warning for warning in stop_warnings(only(runs)))
    bare = [
        run.model_copy(update={"evaluations": [run.evaluations[0].model_copy(update={"terminated": {}})]})
        for run in runs
    ]
    assert any("far fewer" in warning for warning in stop_warnings(only(bare)))  # single answers are not known


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits_and_keeps_numbers_whole(make_run: MakeRun, study: list[RunResult], width: int) -> None:
    mix = make_run("mix 0.9 lead_answer 0.5 to 0.75", 28, MIX, cost=0.55)
    lines = rendered(only([*study, mix]), width)
    assert max(map(len, lines)) <= width
    lead = next(line for line in lines if line.startswith("lead 0.5"))
    assert "38 [32, 44] %" in lead and "53 [48, 58] %" in lead and "50 %" in lead
    assert ("memory" in "\n".join(lines)) == (width >= 110)


def test_the_terminal_table_shows_labels_as_they_are(make_run: MakeRun) -> None:
    assert any(line.startswith("[red]x[/red]") for line in rendered(only([make_run("[red]x[/red]", 3)]), 120))


def test_costs_are_absolute_where_there_is_no_uncut_run(make_run: MakeRun) -> None:
    (row,) = [line for line in rendered(only([make_run("lead 0.5", 20)]), 120) if line.startswith("lead 0.5")]
    assert "1 k" in row and "10 s" in row and "200 B" in row and "400 FLOP" in row


def test_the_markdown_table_has_every_column_and_escapes_labels(make_run: MakeRun) -> None:
    frontier = only([make_run("full", 30, FULL), make_run("a|b <i>", 15, cost=0.5, ended=0.53)])
    lines = markdown_table(frontier).splitlines()
    columns = "accuracy | terminated | of full's accuracy | of its gain | train tokens | time | memory | FLOPs"
    assert lines[0] == f"| policy | {columns} | answer tokens |"
    assert lines[1] == "| :-- |" + " --: |" * 9
    assert lines[2].startswith(f"| full | 75 [69, 81] % | 100 [95, 100] % | reference | {MISSING} | 100 % |")
    kept = kept_text(frontier.rows[1])
    costs = "50 % | 50 % | 50 % | 50 % | 148 |"
    assert lines[3] == f"| a\\|b &lt;i&gt; | 38 [32, 44] % | 53 [48, 58] % | {kept} | {MISSING} | {costs}"
    assert "Intervals of 95 %" in lines[5]


def test_tables_and_sentences_are_printed_for_every_task(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    print_frontiers(build_frontiers([make_run("full", 30, FULL, tasks=("sums", "products"), ended=0.5)]))
    printed = capsys.readouterr().out
    assert "sums: 40 problems x 1 sample" in printed and "products: 40 problems x 1 sample" in printed
    assert printed.count("ended only 50 % of its answers") == 2


def test_seeds_are_counted_and_the_spread_of_a_cost_stands_beside_its_mean(make_run: MakeRun) -> None:
    fulls = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)]
    leads = [make_run("lead 0.5", 15, seed=seed, cost=cost) for seed, cost in ((0, 0.4), (1, 0.6))]
    lines = rendered(only([*fulls, *leads]), 120)
    assert lines[0] == "toy: 40 problems x 1 sample x 2 seeds"
    (row,) = [line for line in lines if line.startswith("lead 0.5")]
    assert "50 ± 14 %" in row  # 0.4 and 0.6: mean 0.5, standard deviation 0.1414
    text = " ".join(lines)
    assert "seeds included" in text and "which do not cover" not in text


def test_a_row_of_one_seed_beside_others_is_named_as_not_covering_seeds(make_run: MakeRun) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)]
    found = captions(only([*runs, make_run("lead 0.5", 15)]))
    assert "Intervals of 95 %, which for lead 0.5 do not cover how seeds differ" in found[0]


def test_the_share_of_the_gain_is_shown_where_the_terminal_is_wide(study: list[RunResult]) -> None:
    (row,) = [line for line in rendered(only(study), 140) if line.startswith("lead 0.5")]
    gained = only(study).rows[3].gained
    assert gained is not None and gained.ratio is not None
    assert gained.ratio.value == pytest.approx((15 - 6) / (30 - 6))
    assert percent_interval(gained.ratio) in row
    assert "gain" not in " ".join(rendered(only(study), 120)[:3])
