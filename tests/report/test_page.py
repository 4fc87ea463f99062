import re
from collections.abc import Callable

import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.errors import RunError
from leadspan.report.content import Report, build_report
from leadspan.report.document import INTRODUCTION
from leadspan.report.evidence import _cost_elements
from leadspan.report.figures import PALETTE, chart_data
from leadspan.report.inputs import ReportInputs
from leadspan.report.write import report_text, sorted_by
from leadspan.results import RunResult
from leadspan.study.record import CaptureRecord, StudyRecord, TrialRecord
from leadspan.tables import MISSING, Block, Cell
from leadspan.training.result import StepSeconds
from made_runs import made_study, pretrained, training

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
HOSTILE = '<script>alert(1)</script><img src=x onerror="document.body.dataset.hacked=1">'


@pytest.mark.slow
def test_the_page_loads_nothing(study: list[RunResult], page_of: Callable) -> None:
    page = page_of(study)
    assert len(page.source) < 1_000_000
    assert not re.search(r"\b(src|srcset|action)\s*=", page.own)
    assert all(target.startswith("#") for target in re.findall(r'\bhref="([^"]*)"', page.own))
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b", page.own)
    assert "default-src 'none'" in page.own


@pytest.mark.slow
def test_a_page_of_many_runs_stays_small(make_run: MakeRun, page_of: Callable) -> None:
    """A further run of two tasks adds its rows, its point and its recipe, and names no column and no sampling again."""
    runs = [make_run("full", 30, FULL, seed=seed, tasks=("sums", "products")) for seed in range(12)]
    few, many = (page_of(runs[:number]).source for number in (2, 12))
    assert (len(many) - len(few)) / 10 < 5_500
    assert many.count("  learning_rate: 0.001\n") == 12


def test_a_sentence_for_strangers_and_the_answer_come_first(study: list[RunResult], page_of: Callable) -> None:
    own = page_of(study, title="Toy study").own
    order = ["Toy study</h1>", INTRODUCTION, 'class="lead"', 'role="note"', 'id="frontier"', 'id="costs"', 'id="cut"']
    positions = [own.index(words) for words in [*order, 'id="settings"']]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_every_entry_of_the_contents_is_there(study: list[RunResult], page_of: Callable) -> None:
    own = page_of(study).own
    targets = re.findall(r'href="#([^"]*)"', own)
    assert targets[:3] == ["answer", "frontier", "costs"] and "samples" not in targets
    assert all(f'id="{target}"' in own for target in targets)


def test_the_target_and_the_cost_are_the_reader_s(study: list[RunResult], report_of: Callable[..., Report]) -> None:
    (task,) = report_of(study, target=0.3, cost="tokens").tasks
    (answer,) = task.answers
    assert answer.recommended == "lead 0.5"
    assert task.cost_names[0] == "tokens"


@pytest.mark.slow
def test_every_student_has_its_own_answer(make_run: MakeRun, page_of: Callable) -> None:
    runs = []
    for name, right in (("large", 32), ("small", 20)):
        for cut, kept in ((FULL, right), ({"kind": "lead", "p": 0.5}, right - 1)):
            runs.append(make_run(f"{cut['kind']}, {name}", kept, cut, settings={"student": pretrained(name)}))
    page = page_of(runs)
    leads = re.findall(r'<p class="lead">(.*?)</p>', page.own)
    assert len(leads) == 2 and "lead, large" in leads[0] and "lead, small" in leads[1]


@pytest.mark.slow
def test_seeds_are_one_row_and_stand_alone_below(make_run: MakeRun, page_of: Callable) -> None:
    runs = [make_run("full", 30 + seed, FULL, seed=seed) for seed in (0, 1)]
    runs += [make_run("lead 0.5", 15 + seed, cost=0.5, seed=seed) for seed in (0, 1)]
    page = page_of(runs)
    assert page.text.index("lead 0.5 2 39 [") < page.text.index("lead 0.5 (seed 1) 40 [")
    (task,) = page.data["tasks"]
    assert [row["label"] for row in task["rows"]] == ["full", "lead 0.5"]
    assert [run["accuracy"][0] for run in task["rows"][1]["runs"]] == [37.5, 40.0]


@pytest.mark.slow
def test_a_policy_stands_against_its_control(make_run: MakeRun, page_of: Callable) -> None:
    runs = [make_run("full", 30, FULL), make_run("lead 0.5", 28, cost=0.5)]
    runs += [make_run("random_window 0.5", 4, {"kind": "random_window", "p": 0.5}, cost=0.5)]
    text = page_of(runs).text
    assert re.search(r"lead 0\.5 random window random_window 0\.5 better \+60 \[\+\d+, \+\d+\] points", text)


def test_what_was_cut_and_refused_is_counted(make_run: MakeRun, page_of: Callable) -> None:
    refused = {"think tag missing": 3}
    runs = [make_run("full", 30, FULL, refused=refused), make_run("lead 0.5", 15, cost=0.5, refused=refused)]
    text = page_of(runs).text
    assert "lead 0.5 50 % (500 of 1 k) 100 % 50 % 0 % 0 40 40 40 40 of 41 no weighted position: 1" in text
    assert "think tag missing full, lead 0.5 3" in text


def test_every_figure_has_its_numbers_as_a_table(study: list[RunResult], page_of: Callable) -> None:
    text = page_of(study).text
    assert "full measured 300 (75 %) 100 (25 %)" in text  # of the stacked bars
    assert "full 0: 2, 5: 1.75, 10: 1.5" in text  # of the curve of validation losses


def test_every_figure_says_what_it_was_measured_on(study: list[RunResult], page_of: Callable) -> None:
    # The base was trained elsewhere, which no cost of a student was measured on.
    study[1] = study[1].model_copy(update={"train": training(1.0, "a GPU, 1 rank")})
    page = page_of(study)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.own, re.DOTALL)
    assert len(captions) == len(re.findall(r"data-figure=", page.own)) == 4
    devices = "cpu, 1 rank, seed 0, 2026-03-02, leadspan 0.1.0, commit 3f2a9c1."
    assert all(caption.endswith(devices) and "GPU" not in caption for caption in captions)
    assert sum("toy, 40 problems x 1 sample;" in caption for caption in captions) == 2


def test_hostile_labels_are_escaped_everywhere(make_run: MakeRun, page_of: Callable) -> None:
    runs = [make_run("full", 30, FULL), make_run(HOSTILE, 15, name=HOSTILE, refused={HOSTILE: 1})]
    page = page_of(runs, title=HOSTILE)
    assert "<script>alert" not in page.source and "<img" not in page.own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.source
    assert page.data["tasks"][0]["rows"][1]["label"] == HOSTILE


def test_runs_without_training_make_a_page_without_cost_figures(make_run: MakeRun, page_of: Callable) -> None:
    page = page_of([make_run("base", 6, role="base")])
    assert 'id="rates-0"' in page.own and 'id="frontier-0"' not in page.own and 'id="costs"' not in page.own


def test_every_task_has_its_own_answer_and_figures(make_run: MakeRun, page_of: Callable) -> None:
    page = page_of([make_run("full", 30, FULL, tasks=("sums", "products"))])
    assert all(f'id="{figure}-{task}"' in page.own for figure in ("frontier", "rates") for task in (0, 1))
    assert "Quality and cost: products" in page.text and page.own.count('class="lead"') == 2


def test_figures_draw_display_units(study: list[RunResult], report_of: Callable[..., Report]) -> None:
    data = chart_data(report_of(study))
    (task,) = data["tasks"]
    assert task["axes"] == {
        "seconds": "Training time (s)",
        "peak_memory_bytes": "Peak memory (B)",
        "flops": "FLOPs (FLOP)",
        "tokens": "Training tokens (k)",
    }
    lead = task["rows"][3]
    assert lead["accuracy"] == [37.5, 31.5, 43.5] and lead["termination"] == [53.0, 48.0, 58.0]
    assert lead["costs"] == {"seconds": 5.0, "peak_memory_bytes": 100, "flops": 200, "tokens": 0.5}
    assert lead["cost_texts"]["tokens"] == "500, 50 % of the uncut"
    assert data["splits"]["flops"]["bars"] == [
        {"label": "full", "policy": "full", "kind": "measured", "parts": {"student_body": 300, "teacher_body": 100}},
        {"label": "lead 0.5", "policy": "lead 0.5", "kind": "measured",
         "parts": {"student_body": 150, "teacher_body": 50}},
    ]  # fmt: skip
    curve = {"label": "full", "policy": "full", "steps": [0, 5, 10], "losses": [2.0, 1.75, 1.5]}
    assert data["validation"][0] == curve


def test_parts_that_are_not_known_are_no_zeros(study: list[RunResult], report_of: Callable[..., Report]) -> None:
    bars = [
        {"label": "full", "policy": "full", "kind": kind, "parts": {"total": total, "weights": weights}}
        for kind, total, weights in (("measured", 100, 0), ("predicted", 0, 80))
    ]
    memory = {
        "title": "Peak memory (B)",
        "bars": bars,
        "parts": {"total": "total, parts unknown", "weights": "weights"},
    }
    elements = _cost_elements(report_of(study), {"splits": {"memory": memory}}, "")
    table = next(element for element in elements if isinstance(element, Block))
    assert table.rows == (("full", "measured", "100 (100 %)", MISSING), ("full", "predicted", MISSING, "80 (100 %)"))


def test_bars_are_means_over_seeds(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("full", 30, FULL, seed=seed, cost=cost) for seed, cost in enumerate((1.0, 2.0))]
    (bar,) = chart_data(report_of(runs))["splits"]["flops"]["bars"]
    assert bar["parts"] == {"student_body": 450, "teacher_body": 150}


def test_energy_and_money_are_axes_where_all_runs_know_them(make_run: MakeRun, report_of: Callable) -> None:
    priced = {"plan": {"price_per_hour": 1.8, "currency": "EUR"}}
    runs = [make_run("full", 30, FULL, settings=priced), make_run("lead 0.5", 15, cost=0.5, settings=priced)]
    for i, run in enumerate(runs):
        assert run.train is not None
        train = run.train.model_copy(update={"energy_joules": 7200.0 / (i + 1), "num_ranks": 2})
        runs[i] = run.model_copy(update={"train": train})
    report = report_of(runs, cost="money")
    (task,) = chart_data(report)["tasks"]
    assert next(iter(task["axes"])) == "money" and task["axes"]["money"] == "Price (EUR)"
    assert task["axes"]["energy_joules"] == "Energy (Wh)"
    lead = task["rows"][1]
    assert lead["costs"]["energy_joules"] == 1.0 and lead["costs"]["money"] == pytest.approx(1.8 * 2 * 5 / 3600)
    assert lead["cost_texts"]["money"] == "0.005 EUR, 50 % of the uncut"
    runs[1] = make_run("lead 0.5", 15, cost=0.5)
    assert "money" not in report_of(runs).tasks[0].cost_names


def test_every_part_of_a_bar_has_a_colour() -> None:
    parts = {"total", *FlopsByPart.model_fields, *MemoryByPart.model_fields, *StepSeconds.model_fields}
    assert {part for part in parts if part.replace("_", "-") not in PALETTE} == set()


def test_a_policy_has_one_colour_and_marker_on_the_page_and_in_files(
    make_run: MakeRun, report_of: Callable[..., Report]
) -> None:
    cuts = [make_run(f"lead 0.{p:02}", 9, {"kind": "lead", "p": p / 100}) for p in range(1, 8)]
    styles = chart_data(report_of([make_run("base", 6, role="base"), make_run("full", 30, FULL), *cuts]))["styles"]
    assert styles["base"] == {"colour": "muted", "marker": 0} and styles["full"] == {"colour": "ink", "marker": 0}
    assert styles["lead 0.06"] == {"colour": "policy-6", "marker": 0}
    assert styles["lead 0.07"] == {"colour": "policy-1", "marker": 1}


def test_a_policy_keeps_its_colour_over_seeds(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("base", 6, role="base")]
    for seed in (0, 1):
        runs += [make_run("lead 0.5", 9, seed=seed), make_run("full", 30, FULL, seed=seed)]
        runs += [make_run("b", 9, {"kind": "tail", "p": 0.5}, seed=seed)]
    colours = {policy: style["colour"] for policy, style in chart_data(report_of(runs))["styles"].items()}
    assert colours == {"base": "muted", "full": "ink", "lead 0.5": "policy-1", "b": "policy-2"}


def test_settings_and_versions_that_differ_are_apart_from_the_common_ones(
    make_run: MakeRun, report_of: Callable[..., Report]
) -> None:
    runs = [make_run("teacher", 40, role="teacher"), make_run("full", 30, FULL), make_run("lead 0.5", 15)]
    runs[2] = runs[2].model_copy(update={"environment": {**runs[2].environment, "commit": "77aa"}})
    found = report_of(runs).settings
    lead = {"p": "0.5", "stop": "none", "align": "token"}
    assert found.differing == {
        "cut.kind": {"full": "full", "lead 0.5": "lead"},
        **{f"cut.{name}": {"full": "\N{EN DASH}", "lead 0.5": value} for name, value in lead.items()},
        "(commit)": {"full": "3f2a9c1", "lead 0.5": "77aa"},
    }
    assert (found.common["training.learning_rate"], found.common["(leadspan)"]) == ("0.001", "0.1.0")
    assert not found.common.keys() & {"name", "output", "seed"}


def test_settings_that_differ_are_a_row_for_each_policy(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)] + [make_run("lead 0.5", 15, seed=0)]
    runs[1] = runs[1].model_copy(update={"environment": {**runs[1].environment, "commit": "77aa"}})
    report = report_of(runs)
    place = list(report.settings.differing).index("(commit)")
    rows = report.settings.by_policy(report.policies)
    assert [(policy, values[place]) for policy, values in rows.items()] == [
        ("full", "3f2a9c1, 77aa"),
        ("lead 0.5", "3f2a9c1"),
    ]


def test_captures_and_missing_trials_are_shown(study: list[RunResult], report_of: Callable) -> None:
    trials = [
        TrialRecord(name="tail", seed=1, directory="t", fingerprint="t", state="failed", message="out of <memory>"),
        TrialRecord(name="full", seed=1, directory="f", fingerprint="f", state="done"),
    ]
    store = CaptureRecord(name="store hidden", directory="store", state="done", num_trials=3, seconds=150.0, flops=2)
    record = StudyRecord(name="s", study=made_study(), trials=trials, notes=["no full"], captures=[store])
    page = report_text(report_of(study).model_copy(update={"studies": [record]}), "html")
    assert page.index("1 of 2 trials of the study s are complete") < page.index('id="frontier"')
    assert page.index("store hidden") < page.index("2.5 min</td>")
    assert "out of &lt;memory&gt;" in page and "no full" in page


def test_no_runs_are_refused() -> None:
    with pytest.raises(RunError, match="no run has an evaluation"):
        build_report(ReportInputs((), ()))


@pytest.mark.parametrize(
    ("cell", "key"),
    [("-3 %", "-3"), ("1,036", "1036"), ("1.5 kFLOP", "1500.0"), ("50 GFLOP/s", "50000000000.0"), ("-", "-"),
     (Cell("5.05 GiB", 5419192320.0), "5419192320"), (Cell("48 %", 0.475000001), "0.475"),
     (Cell("0.31", 0.312), "0.31"), (Cell("1 %", None), "")],
)  # fmt: skip
def test_cells_are_sorted_by_their_number(cell: str, key: str) -> None:
    assert sorted_by(cell) == key
