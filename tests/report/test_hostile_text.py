"""Names, messages and samples written by others, in every rendering of a report."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from leadspan.report.content import Report, build_report
from leadspan.report.inputs import ReportInputs, read_inputs
from leadspan.report.write import print_report, report_text, write_report
from leadspan.results import RunResult
from leadspan.status import PlainConsole
from leadspan.study.record import StudyRecord, TrialRecord, save_study
from leadspan.tables import short
from made_runs import made_study

MakeRun = Callable[..., RunResult]
HOSTILE = (
    "a|b\n# head\r\n| c |<script>alert(1)</script> ![x](http://evil/y.png) \x1b]0;t\x07\u202edne $\\frac{$ "
    "https://me:hunter2@host/?token=hunter2 [/b]"
)
FORBIDDEN = ("<script>alert", "\x1b", "\x07", "\u202e", "hunter2", "\r")


@pytest.fixture
def hostile(make_run: MakeRun, tmp_path: Path, gathered_of: Callable[..., ReportInputs]) -> ReportInputs:
    """Every kind of text of a report is hostile: labels, tasks, reasons, devices, versions, trials, notes."""
    changes = {"refused": {HOSTILE: 3}, "environment": {"leadspan": HOSTILE, HOSTILE: "1", "date": "2026-03-02"}}
    runs = [
        make_run("full", 30, {"kind": "full"}, tasks=(HOSTILE,), device=HOSTILE),
        make_run("lead 0.5", 15, tasks=(HOSTILE,), cost=0.5),
    ]
    runs[1] = runs[1].model_copy(update={"label": HOSTILE, "name": HOSTILE})
    found = gathered_of([run.model_copy(update=changes) for run in runs])
    trial = TrialRecord(name=HOSTILE, seed=0, directory="x", fingerprint="x", state="failed", message=HOSTILE)
    save_study(StudyRecord(name=HOSTILE, study=made_study(), trials=[trial], notes=[HOSTILE]), tmp_path / "study")
    return read_inputs([*found.directories, tmp_path / "study"])


@pytest.fixture
def report(hostile: ReportInputs) -> Report:
    return build_report(hostile, title=HOSTILE)


def test_markdown_keeps_its_shape(report: Report) -> None:
    text = report_text(report, "md")
    assert not [code for code in FORBIDDEN if code in text]
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("# ")] == [lines[0]]
    assert not re.search(r"(?<!\\)\]\(", text), "no link or image"
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) > 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, table[0]


def test_the_page_holds_no_code_and_no_secret(report: Report, tmp_path: Path) -> None:
    (path,) = write_report(report, tmp_path / "report.html")
    own = re.sub(r'<script type="application/gzip".*?</script>', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not [code for code in FORBIDDEN if code in own]
    assert r"\u202e" not in own and r"\u001b" not in own
    assert own.count('class="swatch policy-1"') > 5 and 'class="swatch muted"' not in own


@pytest.mark.slow
def test_data_holds_no_secret_and_figures_are_drawn(report: Report, tmp_path: Path) -> None:
    (path,) = write_report(report, tmp_path / "report.json", "json")
    assert "hunter2" not in path.read_text() and Report.model_validate_json(path.read_text()).tasks
    assert write_report(report, tmp_path / "figures", "png")


def test_the_terminal_obeys_nothing(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report, PlainConsole())
    out = capsys.readouterr().out
    assert not [code for code in FORBIDDEN if code in out and code != "<script>alert"]


@pytest.mark.parametrize("long", ["l" * 300_000, "/" * 300_000])
def test_a_long_label_is_shortened_in_time_of_its_length(long: str) -> None:
    assert short(f"{long} runs/study/base/student") == f"{long} \N{HORIZONTAL ELLIPSIS}/base/student"
