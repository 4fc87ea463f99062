import html
import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadspan.errors import RunError
from leadspan.results import RunResult
from leadspan.study.frontier import build_frontiers
from leadspan.study.report import chart_data, differing_settings, policy_colours, write_report

MakeRun = Callable[..., RunResult]
FULL = {"kind": "full"}
HOSTILE = '<script>alert(1)</script><img src=x onerror="document.body.dataset.hacked=1">'


def page_of(runs: list[RunResult], folder: Path, **options: Any) -> str:
    return write_report(runs, folder / "new" / "report.html", **options).read_text(encoding="utf-8")


def own_part(page: str) -> str:
    """The page without the embedded plotly.js."""
    head, library = page.split("<script>/**\n* plotly.js", 1)
    return head + library.split("</script>", 1)[1]


def text_of(page: str) -> str:
    """What a reader sees, with ordinary spaces."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", own_part(page), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).replace("\xa0", " ").split())


def json_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_loads_nothing(study: list[RunResult], tmp_path: Path) -> None:
    page = page_of(study, tmp_path)
    assert page.count("* plotly.js v") == 1
    own = own_part(page)
    assert not re.search(r"\b(src|href|srcset|action)\s*=", own)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\b", own)
    assert "default-src 'none'" in own


def test_the_answer_comes_first(study: list[RunResult], tmp_path: Path) -> None:
    text = text_of(page_of(study, tmp_path, title="Toy study"))
    order = [
        "Toy study",
        "No policy is shown to keep 90 %",
        "lead 0.5 (53 %) never learned to stop",
        "lead 0.5 kept 50 [",
    ]
    order += ["Quality and cost", "Where the FLOPs went", "What was cut", "Records refused", "Settings"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_teacher_that_fails_is_told_before_anything_else(make_run: MakeRun, tmp_path: Path) -> None:
    text = text_of(page_of([make_run("teacher", 20, role="teacher"), make_run("full", 30, FULL)], tmp_path))
    assert text.index("The teacher has not learned this world") < text.index("No policy can be recommended")


def test_the_table_shows_every_run_with_costs_beside_their_shares(study: list[RunResult], tmp_path: Path) -> None:
    text = text_of(page_of(study, tmp_path))
    assert "lead 0.5 38 [32, 44] % 53 [48, 58] % 50 [" in text
    assert "50 % 500 50 % 5 s 50 % 100 B 50 % 200 FLOP 47 % 148" in text
    assert "full 75 [69, 81] % 99 [94, 100] % reference 100 % 1 k 100 % 10 s" in text


def test_what_was_cut_and_refused_is_counted(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("full", 30, FULL, refused={"think tag missing": 3}),
        make_run("lead 0.5", 15, cost=0.5, refused={"think tag missing": 3}),
    ]
    text = text_of(page_of(runs, tmp_path))
    assert "50 % 500 of 1 k 100 % 50 % 0 % 0 40 40 40 40 of 41 1 no weighted position: 1" in text
    assert "think tag missing 3 full, lead 0.5" in text


def test_captions_say_what_was_measured_on_what(study: list[RunResult], tmp_path: Path) -> None:
    text = text_of(page_of(study, tmp_path))
    measured = "toy, 40 problems x 1 sample; cpu, 1 rank, 2026-03-02, leadspan 0.1.0, commit 3f2a9c1."
    assert text.count(f"Measured on {measured}") == 2
    assert text.count("Trained on cpu, 1 rank, 2026-03-02, leadspan 0.1.0, commit 3f2a9c1.") == 2


def test_hostile_labels_are_escaped_everywhere(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("full", 30, FULL), make_run(HOSTILE, 15, name=HOSTILE, refused={HOSTILE: 1})]
    page = page_of(runs, tmp_path, title=HOSTILE)
    assert "<script>alert" not in page and "<img" not in own_part(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert json_of(page)["tasks"][0]["rows"][1]["label"] == HOSTILE


def test_runs_without_training_make_a_page_without_cost_figures(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of([make_run("base", 6, role="base")], tmp_path)
    assert "Accuracy and termination" in page and "Accuracy against cost" not in page


def test_every_task_has_its_own_findings_and_figures(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of([make_run("full", 30, FULL, tasks=("sums", "products"))], tmp_path)
    assert all(f'id="{figure}-{task}"' in page for figure in ("frontier", "rates") for task in (0, 1))
    assert "Quality and cost: products" in text_of(page)


def test_figures_draw_display_units(study: list[RunResult]) -> None:
    data = chart_data(study, build_frontiers(study))
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
    assert lead["cost_texts"]["tokens"] == "500, 50 % of full"
    assert data["flops"]["labels"] == ["full", "lead 0.5"]
    parts = {part["name"]: part["values"] for part in data["flops"]["parts"]}
    assert parts == {"student_body": [300, 150], "teacher_body": [100, 50]}
    curve = {"label": "full", "colour": 0, "steps": [0, 5, 10], "losses": [2.0, 1.75, 1.5]}
    assert data["validation"][0] == curve


def test_a_policy_keeps_its_colour_over_seeds(make_run: MakeRun) -> None:
    runs = [make_run("base", 6, role="base")]
    for seed in (0, 1):
        runs += [
            make_run("lead 0.5", 9, seed=seed),
            make_run("full", 30, FULL, seed=seed),
            make_run("b", 9, seed=seed),
        ]
    assert policy_colours(runs) == {"base": None, "full": 0, "lead 0.5": 1, "b": 2}


def test_settings_and_versions_that_differ_are_listed(make_run: MakeRun) -> None:
    runs = [make_run("teacher", 40, role="teacher"), make_run("full", 30, FULL), make_run("lead 0.5", 15)]
    runs[2] = runs[2].model_copy(update={"environment": {**runs[2].environment, "commit": "77aa"}})
    assert differing_settings(runs) == {
        "cut.kind": ["full", "lead"],
        "cut.p": ["\N{EN DASH}", "0.5"],
        "(commit)": ["3f2a9c1", "77aa"],
    }


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="0 runs without an evaluation"):
        write_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


PROBE = """
<script>
const faults = [];
addEventListener("error", (event) => faults.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => faults.push(event.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const cells = document.querySelector(".sortable tbody").getElementsByTagName("th");
  const column = () => [...cells].map((cell) => cell.textContent.trim());
  const axis = () => document.querySelector("#frontier-0 .xtitle").textContent;
  const found = { axis: [axis()], order: [column()] };
  document.querySelector("input[value=flops]").click();
  found.axis.push(axis());
  const button = document.querySelectorAll(".sortable button")[5];
  for (const _ of [1, 2]) found.order.push((button.click(), column()));
  const root = document.documentElement;
  found.plots = [...document.querySelectorAll("[data-figure]")].map((node) => [
    node.id, node.querySelectorAll("svg.main-svg .point").length, node.scrollWidth <= node.clientWidth,
  ]);
  found.width = innerWidth;
  found.overflow = root.scrollWidth - root.clientWidth;
  found.label = [...document.querySelectorAll("#rates-0 .ytick")].at(-1).textContent;
  const hacked = "hacked" in document.body.dataset;
  parent.postMessage({ ...found, faults, hacked }, "*");
}, 1500));
</script>
"""
FRAMES = """<!doctype html><body><script>
addEventListener("message", (event) => {
  document.body.append(document.createElement("pre"));
  document.body.lastChild.textContent = JSON.stringify(event.data);
});
</script>
<iframe src="probed.html" style="width:390px;height:900px;border:0"></iframe>
<iframe src="probed.html" style="width:1280px;height:900px;border:0"></iframe>"""


def chromium() -> str:
    """The browser, or a skip that says on CI, where a skip would pass unseen, that nothing was tested."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "the report was NOT opened in a browser: no chromium or google-chrome on PATH; install chromium"
        if os.environ.get("CI"):
            warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    return found


def browse(binary: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """The DOM after scripts have run, and what was written to the console."""
    offline = "--disable-background-networking --disable-component-update --disable-sync --disable-quic"
    window = "--window-size=1800,1000 --no-first-run --disable-gpu --no-sandbox"
    output = f"--user-data-dir={profile} --enable-logging=stderr --virtual-time-budget=8000 --dump-dom"
    command = [binary, "--headless", *offline.split(), *window.split(), *output.split()]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
def test_a_browser_draws_sorts_and_switches_axes_at_phone_and_desk_width(
    make_run: MakeRun, study: list[RunResult], tmp_path: Path
) -> None:
    binary = chromium()
    page = page_of([*study, make_run(HOSTILE, 20, cost=0.7)], tmp_path)
    (tmp_path / "probed.html").write_text(page.replace("</head>", f"{PROBE}</head>", 1), encoding="utf-8")
    (tmp_path / "frames.html").write_text(FRAMES, encoding="utf-8")
    dom, console = browse(binary, tmp_path / "frames.html", tmp_path / "profile")
    reports = [json.loads(html.unescape(found)) for found in re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)]
    assert console == []
    assert sorted(found["width"] for found in reports) == [390, 1280]
    for found in reports:
        assert found["faults"] == [] and not found["hacked"]
        assert found["overflow"] == 0
        assert found["label"].replace(" ", "") == HOSTILE.replace(" ", "")
        assert found["axis"] == ["Training time (s)", "FLOPs (FLOP)"]
        assert found["order"][0] == ["teacher", "base", "full", "lead 0.5", HOSTILE]
        assert found["order"][1] == ["lead 0.5", HOSTILE, "full", "teacher", "base"]
        assert found["order"][2] == ["full", HOSTILE, "lead 0.5", "teacher", "base"]
        assert found["plots"] == [
            ["frontier-0", 3, True],
            ["rates-0", 10, True],
            ["flops-0", 6, True],
            ["validation-0", 9, True],
        ]
