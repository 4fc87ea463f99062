import re
from collections.abc import Callable

import pytest

from leadspan.errors import RunError
from leadspan.results import RunResult
from leadspan.study.record import CaptureRecord
from leadspan.study.report.charts import chart_data, policy_colours
from leadspan.study.report.content import build_report
from leadspan.study.report.gathered import Gathered
from leadspan.study.report.page import sortable
from leadspan.study.report.provenance import MissingTrial, StudyState
from leadspan.study.report.schema import Report

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
HOSTILE = '<script>alert(1)</script><img src=x onerror="document.body.dataset.hacked=1">'


def test_the_page_loads_nothing(study: list[RunResult], page_of: Callable) -> None:
    page = page_of(study)
    assert page.source.count("* plotly.js v") == 1
    assert not re.search(r"\b(src|srcset|action)\s*=", page.own)
    assert all(target.startswith("#") for target in re.findall(r'\bhref="([^"]*)"', page.own))
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b", page.own)
    assert "default-src 'none'" in page.own


def test_the_answer_comes_first(study: list[RunResult], page_of: Callable) -> None:
    text = page_of(study, title="Toy study").text
    order = [
        "Toy study",
        "No policy is shown to keep 90 % of full's accuracy; lead 0.5 comes closest: it kept 50 [",
        "lead 0.5 (53 %) ended far fewer answers than full (99 %)",
        "lead 0.5 kept 50 [",
    ]
    order += ["Measured on toy, 40 problems", "Strict accuracy beside the share", "Operations by part"]
    order += ["Counted on the training set", "What differs between the students"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_every_entry_of_the_contents_is_there(study: list[RunResult], page_of: Callable) -> None:
    own = page_of(study).own
    targets = re.findall(r'href="#([^"]*)"', own)
    assert targets[:3] == ["answer", "frontier", "costs"] and "samples" not in targets
    assert all(f'id="{target}"' in own for target in targets)


def test_the_target_and_the_cost_are_the_reader_s(study: list[RunResult], report_of: Callable[..., Report]) -> None:
    (task,) = report_of(study, target=0.3, cost="tokens").tasks
    (answer,) = task.answers
    assert answer.recommended == "lead 0.5" and "by tokens shown to keep 30 %" in answer.sentence
    assert task.cost_names[0] == "tokens"


def test_every_student_has_its_own_answer(make_run: MakeRun, page_of: Callable) -> None:
    runs = []
    for name, right in (("large", 32), ("small", 20)):
        for cut, kept in ((FULL, right), ({"kind": "lead", "p": 0.5}, right - 1)):
            run = make_run(f"{cut['kind']}, {name}", kept, cut)
            runs.append(run.model_copy(update={"recipe": {**run.recipe, "student": {"path": name}}}))
    page = page_of(runs)
    leads = re.findall(r'<p class="lead">(.*?)</p>', page.own)
    assert len(leads) == 2 and "lead, large" in leads[0] and "lead, small" in leads[1]


def test_a_teacher_that_fails_is_told(make_run: MakeRun, page_of: Callable) -> None:
    text = page_of([make_run("teacher", 20, role="teacher"), make_run("full", 30, FULL)]).text
    assert text.index("No policy can be recommended") < text.index("The teacher solves less than its student")


def test_the_table_shows_every_policy_with_costs_beside_their_shares(study: list[RunResult], page_of: Callable) -> None:
    text = page_of(study).text
    assert "lead 0.5 38 % [32, 44] 53 % [48, 58] 50 % [" in text
    assert "50 % 5 s 50 % 100 B 50 % 200 FLOP 50 % 500 47 % 148" in text
    assert "full 75 % [69, 81] 99 % [94, 100] reference" in text


def test_seeds_are_one_row_and_stand_alone_below(make_run: MakeRun, page_of: Callable) -> None:
    runs = [make_run("full", 30 + seed, FULL, seed=seed) for seed in (0, 1)]
    runs += [make_run("lead 0.5", 15 + seed, cost=0.5, seed=seed) for seed in (0, 1)]
    page = page_of(runs)
    assert "lead 0.5 2 seeds 39 %" in page.text and "Every run alone (4)" in page.text
    assert page.text.index("lead 0.5 2 seeds") < page.text.index("lead 0.5 (seed 1)")
    (task,) = page.data["tasks"]
    assert [row["label"] for row in task["rows"]] == ["full", "lead 0.5"]
    assert [run["accuracy"][0] for run in task["rows"][1]["runs"]] == [37.5, 40.0]


def test_a_policy_stands_against_its_control(make_run: MakeRun, page_of: Callable) -> None:
    runs = [make_run("full", 30, FULL), make_run("lead 0.5", 28, cost=0.5)]
    runs += [make_run("random_window 0.5", 4, {"kind": "random_window", "p": 0.5}, cost=0.5)]
    text = page_of(runs).text
    assert "Against the controls" in text
    assert re.search(r"lead 0\.5 random window random_window 0\.5 better \+60 \[\+\d+, \+\d+\] points", text)


def test_what_was_cut_and_refused_is_counted(make_run: MakeRun, page_of: Callable) -> None:
    runs = [
        make_run("full", 30, FULL, refused={"think tag missing": 3}),
        make_run("lead 0.5", 15, cost=0.5, refused={"think tag missing": 3}),
    ]
    text = page_of(runs).text
    assert "50 % 500 of 1 k 100 % 50 % 0 % 0 40 40 40 40 of 41 1 no weighted position: 1" in text
    assert "think tag missing full, lead 0.5 3" in text


def test_every_figure_says_what_it_was_measured_on(study: list[RunResult], page_of: Callable) -> None:
    page = page_of(study)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.own, re.DOTALL)
    assert len(captions) == len(re.findall(r"data-figure=", page.own)) == 4
    devices = "cpu, 1 rank, seed 0, 2026-03-02, leadspan 0.1.0, commit 3f2a9c1."
    assert all(caption.endswith(devices) for caption in captions)
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


def test_bars_are_means_over_seeds(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("full", 30, FULL, seed=seed, cost=cost) for seed, cost in enumerate((1.0, 2.0))]
    (bar,) = chart_data(report_of(runs))["splits"]["flops"]["bars"]
    assert bar["parts"] == {"student_body": 450, "teacher_body": 150}


def test_energy_and_money_are_axes_where_all_runs_know_them(make_run: MakeRun, report_of: Callable) -> None:
    runs = [make_run("full", 30, FULL), make_run("lead 0.5", 15, cost=0.5)]
    for i, run in enumerate(runs):
        assert run.train is not None
        train = run.train.model_copy(update={"energy_joules": 7200.0 / (i + 1), "num_ranks": 2})
        recipe = {**run.recipe, "plan": {"price_per_hour": 1.8, "currency": "EUR"}}
        runs[i] = run.model_copy(update={"train": train, "recipe": recipe})
    report = report_of(runs, cost="money")
    (task,) = chart_data(report)["tasks"]
    assert next(iter(task["axes"])) == "money" and task["axes"]["money"] == "Price (EUR)"
    assert task["axes"]["energy_joules"] == "Energy (Wh)"
    lead = task["rows"][1]
    assert lead["costs"]["energy_joules"] == 1.0 and lead["costs"]["money"] == pytest.approx(1.8 * 2 * 5 / 3600)
    assert lead["cost_texts"]["money"] == "0.005 EUR, 50 % of the uncut"
    runs[1] = make_run("lead 0.5", 15, cost=0.5)
    assert "money" not in report_of(runs).tasks[0].cost_names


def test_a_policy_keeps_its_colour_over_seeds(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("base", 6, role="base")]
    for seed in (0, 1):
        runs += [make_run("lead 0.5", 9, seed=seed), make_run("full", 30, FULL, seed=seed)]
        runs += [make_run("b", 9, {"kind": "tail", "p": 0.5}, seed=seed)]
    assert policy_colours(report_of(runs)) == {"base": None, "full": 0, "lead 0.5": 1, "b": 2}


def test_settings_and_versions_that_differ_are_apart_from_the_common_ones(
    make_run: MakeRun, report_of: Callable[..., Report]
) -> None:
    runs = [make_run("teacher", 40, role="teacher"), make_run("full", 30, FULL), make_run("lead 0.5", 15)]
    runs[2] = runs[2].model_copy(update={"environment": {**runs[2].environment, "commit": "77aa"}})
    found = report_of(runs).settings
    assert found.differing == {
        "cut.kind": {"full": "full", "lead 0.5": "lead"},
        "cut.p": {"full": "\N{EN DASH}", "lead 0.5": "0.5"},
        "(commit)": {"full": "3f2a9c1", "lead 0.5": "77aa"},
    }
    assert found.common == {"training.learning_rate": "0.001", "(leadspan)": "0.1.0"}


def test_settings_that_differ_are_a_row_for_each_policy(make_run: MakeRun, report_of: Callable[..., Report]) -> None:
    runs = [make_run("full", 30, FULL, seed=seed) for seed in (0, 1)] + [make_run("lead 0.5", 15, seed=0)]
    runs[1] = runs[1].model_copy(update={"environment": {**runs[1].environment, "commit": "77aa"}})
    report = report_of(runs)
    place = list(report.settings.differing).index("(commit)")
    rows = report.settings.by_policy(report.policy_of)
    assert [(policy, values[place]) for policy, values in rows.items()] == [
        ("full", "3f2a9c1, 77aa"),
        ("lead 0.5", "3f2a9c1"),
    ]


def test_missing_trials_are_told_with_their_reasons(study: list[RunResult], report_of: Callable, tmp_path) -> None:
    from leadspan.study.report.page import render_page

    missing = MissingTrial(study="s", trial="tail 0.5, seed 1", state="failed", reason="out of <memory>")
    store = CaptureRecord(name="store hidden", directory="store", state="done", num_trials=3, seconds=150.0, flops=2)
    state = StudyState(
        name="s", num_trials=5, num_complete=4, notes=["equal_tokens: no full"], missing=[missing], captures=[store]
    )
    page = render_page(report_of(study).model_copy(update={"studies": [state]}))
    assert page.index("4 of 5 trials of the study s are complete") < page.index('id="frontier"')
    assert page.index("Targets captured once") < page.index("store hidden") < page.index("2.5 min</td>")
    assert "out of &lt;memory&gt;" in page and "Not made: equal_tokens: no full" in page


def test_no_runs_are_refused() -> None:
    with pytest.raises(RunError, match="0 runs without an evaluation"):
        build_report(Gathered((), ()))


@pytest.mark.parametrize(
    ("cell", "key"),
    [("-3 %", "-3"), ("1,036", "1036"), ("1.5 kFLOP", "1500.0"), ("50 GFLOP/s", "50000000000.0"), ("-", "-")],
)
def test_cells_are_sorted_by_their_number(cell: str, key: str) -> None:
    assert sortable(cell) == key
