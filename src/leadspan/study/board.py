"""The display of a running study: which trials run, of how many, how many failed, and the time left."""

import time
from statistics import fmean
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from leadspan.status import LOG_SECONDS, duration
from leadspan.study.executors.local import Event
from leadspan.study.record import StudyRecord, TrialRecord
from leadspan.tables import Block


class Board:
    """A block of lines that moves on a terminal; a line per start and end of a trial elsewhere."""

    def __init__(self, console: Console):
        self.console = console
        self.running: dict[str, str] = {}
        self._printed_at = 0.0
        # Transient: at the end the block leaves the terminal, and the lines printed above it stay.
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, record: StudyRecord, title: str, event: Event) -> None:
        """Show that a trial started, reported its status, or ended."""
        if event.kind == "said":
            self.running[title] = event.text
            if not self.live and time.monotonic() - self._printed_at >= LOG_SECONDS:
                self._print("\n".join(f"  {running}  {doing}" for running, doing in self.running.items()))
        elif event.kind == "started":
            self.running[title] = "starting"
            if not self.live:
                self._print(Text.assemble((headline(record), "dim"), f"  {title}"))
        else:
            self.running.pop(title, None)
            outcome = ("failed", "red") if event.kind == "failed" else ("done", "")
            # The last line of a traceback is its message.
            last = event.text.strip().splitlines()[-1:] or [""]
            self._print(Text.assemble(outcome, f"  {title}  {last[0]}".rstrip()))
        if self.live:
            lines = [Spinner("dots", text=Text(f"{running}: {doing}")) for running, doing in self.running.items()]
            self.live.update(Group(Text(headline(record), style="bold"), *lines))

    def _print(self, text: str | Text) -> None:
        self._printed_at = time.monotonic()
        self.console.print(text, soft_wrap=True, highlight=False)


def headline(record: StudyRecord) -> str:
    """`3 of 12 done, 1 failed, about 8 min left`."""
    counts = [f"{len(record.of_state('done'))} of {len(record.trials)} done"]
    failed = len(record.of_state("failed"))
    counts += [f"{failed} failed"] if failed else []
    remaining = seconds_left(record)
    counts += [f"about {duration(remaining)} left"] if remaining else []
    return ", ".join(counts)


def seconds_left(record: StudyRecord) -> float | None:
    """Time left, if each remaining trial takes as long as complete ones of its condition, or else of all conditions.

    Divided by the number of trials that run at the same time; None before the first trial is complete.
    """
    # By condition: cuts differ in time by design, seeds do not.
    took: dict[str, list[float]] = {}
    for trial in record.of_state("done"):
        if trial.seconds is not None and trial.control != "before":
            took.setdefault(trial.name, []).append(trial.seconds)
    all_seconds = [seconds for of_name in took.values() for seconds in of_name]
    if not all_seconds:
        return None
    to_come = [*record.of_state("running"), *record.of_state("waiting")]
    total = sum(fmean(took.get(trial.name, all_seconds)) for trial in to_come)
    # Trials at a time share the wall clock.
    return total / max(1, len(record.of_state("running")))


def trials_block(record: StudyRecord) -> Block:
    """Every trial with its state, condition by condition."""
    # Seeds of one condition share a row.
    groups: dict[tuple[str, str | None], list[TrialRecord]] = {}
    for trial in record.trials:
        groups.setdefault((trial.name, trial.control), []).append(trial)
    rows: list[tuple[str, ...]] = []
    for trials in groups.values():
        first = trials[0]
        states = [trial.state for trial in trials]
        done, failed = states.count("done"), states.count("failed")
        seeds = "" if first.title == first.name else ", ".join(str(trial.seed) for trial in trials)
        notes = dict.fromkeys(trial.note for trial in trials if trial.note)
        numbers = (str(number) if number else "" for number in (done, failed, len(states) - done - failed))
        rows.append((first.name, seeds, first.control or "", "; ".join(notes), *numbers))
    header = ("trial", "seeds", "control", "note", "done", "failed", "to do")
    return Block(f"{record.name}: {headline(record)}", header, tuple(rows), num_text=4)
