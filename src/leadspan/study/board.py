"""What a study is doing: which trials run, of how many, how many failed, and the time left."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from leadspan.study.record import StudyRecord, TrialRecord


class Board:
    """A block of lines that moves on a terminal; a line per start and end of a trial elsewhere."""

    def __init__(self, console: Console, record: StudyRecord):
        self.console = console
        self.record = record
        self.running: dict[str, str] = {}
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def said(self, title: str, text: str) -> None:
        """A trial told what it is doing."""
        self.running[title] = text
        self._draw()

    def changed(
        self, record: StudyRecord, title: str, kind: Literal["started", "said", "done", "failed"], text: str
    ) -> None:
        """A trial started or ended."""
        self.record = record
        if kind == "started":
            self.running[title] = "starting"
            if not self.live:
                self.console.print(f"[dim]{headline(record)}[/]  {escape(title)}", highlight=False, soft_wrap=True)
        else:
            self.running.pop(title, None)
            outcome = "[red]failed[/]" if kind == "failed" else "done"
            last = text.strip().splitlines()[-1:] or [""]
            line = f"{outcome}  {escape(title)}  {escape(last[0])}".rstrip()
            self.console.print(line, highlight=False, soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        if self.live:
            lines = [Spinner("dots", text=f"{title}: {text}") for title, text in self.running.items()]
            self.live.update(Group(Text(headline(self.record), style="bold"), *lines))


def headline(record: StudyRecord) -> str:
    """`3 of 12 done, 1 failed, about 8 min left`."""
    counts = [f"{len(record.of_state('done'))} of {len(record.trials)} done"]
    failed = len(record.of_state("failed"))
    counts += [f"{failed} failed"] if failed else []
    left = seconds_left(record)
    counts += [f"about {_duration(left)} left"] if left else []
    return ", ".join(counts)


def seconds_left(record: StudyRecord) -> float | None:
    """Time left: each trial to come as long as complete ones of its condition took, or else as all of them on average.

    Trials that run at the same time share it; None before the first trial is complete.
    """
    took: dict[str, list[float]] = {}
    for trial in record.of_state("done"):
        if trial.seconds is not None and trial.control != "before":
            took.setdefault(trial.name, []).append(trial.seconds)
    known = [seconds for of_name in took.values() for seconds in of_name]
    if not known:
        return None
    to_come = [*record.of_state("running"), *record.of_state("waiting")]
    total = sum(_mean(took.get(trial.name, known)) for trial in to_come)
    return total / max(1, len(record.of_state("running")))


def trials_table(record: StudyRecord) -> Table:
    """Every trial with its state, condition by condition."""
    table = Table(title=f"{record.name}: {headline(record)}", title_justify="left", show_edge=False)
    for name in ("trial", "seeds", "control", "done", "failed", "to do", "note"):
        table.add_column(name, justify="right" if name in ("done", "failed", "to do") else "left", overflow="fold")
    for trials in _by_name(record.trials):
        first = trials[0]
        states = [trial.state for trial in trials]
        done, failed = states.count("done"), states.count("failed")
        seeds = "" if first.title == first.name else ", ".join(str(trial.seed) for trial in trials)
        notes = dict.fromkeys(trial.note for trial in trials if trial.note)
        left = len(states) - done - failed
        numbers = (str(number) if number else "" for number in (done, failed, left))
        table.add_row(escape(first.name), seeds, first.control or "", *numbers, escape("; ".join(notes)))
    return table


def _by_name(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    groups: dict[tuple[str, str | None], list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault((trial.name, trial.control), []).append(trial)
    return list(groups.values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
