import io

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from leadspan.status import LOG_SECONDS, PlainConsole, Progress, StatusHandler, StatusLine, report_detail, report_status

HOSTILE = ["[/INST]", "[bold]x[/bold]", "[asy] draw [/asy]", "[THINK]", ":smile:", "a[/b]"]


@pytest.mark.parametrize("text", HOSTILE)
def test_brackets_are_text_in_lines_cells_and_titles(text: str) -> None:
    console = PlainConsole(file=io.StringIO(), width=80)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    for shown in (text, table, Panel("body", title=Text(text))):
        console.print(shown)
    assert console.file.getvalue().count(text) == 5


def test_text_is_made_plain_before_it_is_wrapped() -> None:
    """A token that a narrow cell breaks in two is still a token."""
    console = PlainConsole(file=io.StringIO(), width=30)
    table = Table(title="https://me:pass-word-of-mine@host")
    table.add_column("a")
    table.add_row("see https://someone:another-long-password@host/x")
    console.print(table, Text("\x1b[2J cleared"), "\u202eturned")
    written = console.file.getvalue()
    assert "pass" not in written.replace("\n", "") and "word" not in written and "***" in written
    assert "\x1b" not in written and "\u202e" not in written and written.count("\N{REPLACEMENT CHARACTER}") == 2


def test_a_status_line_takes_brackets() -> None:
    console = PlainConsole(file=io.StringIO(), width=80, force_terminal=True)
    with StatusLine(console):
        report_status("training: [/INST]")


def test_a_status_is_shown_once_a_stage_and_only_while_a_line_is_open() -> None:
    console = PlainConsole(file=io.StringIO(), width=80)
    lines: list[str] = []
    with StatusHandler(lines.append), StatusLine(console):
        for text in ("reading", "training: step 1/2", "training: step 2/2"):
            report_status(text)
    report_status("evaluating")
    assert console.file.getvalue().split() == ["reading", "training"]
    assert lines == ["reading", "training: step 1/2", "training: step 2/2"]


def test_progress_tells_the_time_left_at_the_speed_of_this_process() -> None:
    lines: list[str] = []
    with StatusHandler(lines.append) as handler:
        progress = Progress("training", 8, "steps", done=2)
        progress._start -= 10
        progress.report(4, ", loss 1.5")  # two steps in ten seconds, and four to come
        progress.report(5)  # too soon after the last
        report_detail("64 tokens")
        assert handler.share == 0.5
        Progress("reading", None, "records").report(1200)
        unlike = Progress("checking", 4, "checks", work=())
        unlike._start -= 10
        unlike.report(1, ", labels")
        rising = Progress("calibrating", 4, "steps", work=[1, 3, 3, 3])
        rising._start -= 10
        rising.report(1)  # a tenth of the work
        assert handler.share == 0.25
        progress.report(8)
    assert lines == [
        "training: 4/8 steps, loss 1.5, 20 s left",
        "training: 4/8 steps, loss 1.5, 20 s left; 64 tokens",
        "reading: 1,200 records",
        "checking: 1/4 checks, labels",
        "calibrating: 1/4 steps, 1 min 30 s left",
        "training: 8/8 steps",
    ]


def test_a_log_has_a_line_of_a_long_stage_now_and_then() -> None:
    console = PlainConsole(file=io.StringIO(), width=80)
    with StatusLine(console) as line:
        report_status("training: 1/9 steps")
        report_status("training: 2/9 steps")
        line._printed_at -= LOG_SECONDS
        report_status("training: 3/9 steps")
        report_status("training: 4/9 steps")
    assert console.file.getvalue().splitlines() == ["training", "training: 3/9 steps"]
