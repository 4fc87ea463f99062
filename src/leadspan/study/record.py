"""The record of a study: all its trials, with state and run directory of each; as a file, and as it is shown."""

import hashlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from leadspan.costs.settings import PlanSettings
from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.recipe import TrialControl
from leadspan.settings import Amount, Count, Settings, load_json
from leadspan.status import LOG_SECONDS, duration
from leadspan.study.settings import Study
from leadspan.tables import Block

STUDY_FILE = "study.json"

State = Literal["waiting", "running", "done", "failed"]


class TrialRecord(Settings):
    """One trial of a study."""

    name: str
    """The condition, the same for all seeds."""
    seed: int
    """Seed of the trial."""
    control: TrialControl | None = None
    """The control it belongs to; absent for a condition of the axes; `before` for a run the trials need."""
    axes: list[str] = []
    """What the condition varies apart from the cut, in the words of the study's axes."""
    note: str = ""
    """Remark that reports show."""
    directory: str
    """Run directory, relative to the study's."""
    fingerprint: str
    """Identifies settings and data."""
    plan: PlanSettings | None = None
    """Machine and price of the study as it is now, which reports use: a trial may have been run before the price was
    known. Absent in records of earlier versions."""
    state: State
    """Its state; `running` in a study that is not being run means that it was interrupted."""
    message: str = ""
    """Why a failed trial failed."""
    seconds: Amount | None = None
    """Wall time of the trial, the last attempt alone."""

    @property
    def title(self) -> str:
        """Condition and seed; what is not trained for the study has no seed of its own."""
        return self.name if self.control in ("before", "base", "teacher") else f"{self.name}, seed {self.seed}"


class CaptureRecord(Settings):
    """A store that trials of a study share, and its cost, which is paid once for all of them."""

    name: str
    """Name and codec."""
    directory: str
    """The store, relative to the study's directory."""
    state: State
    """Its state."""
    message: str = ""
    """Why a failed capture failed."""
    num_trials: Count
    """Trials that read it."""
    num_positions: Count | None = None
    """Positions it holds; absent before it is captured, like the following fields."""
    num_bytes: Count | None = None
    """Size of its shards."""
    seconds: Amount | None = None
    """Wall time of the capture, all attempts."""
    flops: Count | None = None
    """Operations of the teacher's forward pass."""


class StudyRecord(Settings):
    """A study and its trials."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    name: str
    """Name of the study."""
    study: Study
    """Its resolved settings."""
    trials: list[TrialRecord]
    """Runs that come first, then conditions and controls in the order in which they are run."""
    captures: list[CaptureRecord] = []
    """Stores that trials share, captured before them."""
    notes: list[str] = []
    """Controls that could not be made, and why."""
    digest: str = ""
    """SHA-256 of the file with this field empty."""

    def of_state(self, state: State) -> list[TrialRecord]:
        """The trials of one state."""
        return [trial for trial in self.trials if trial.state == state]


def save_study(record: StudyRecord, directory: Path) -> Path:
    """Write `study.json` atomically.

    Raises:
        RunError: It cannot be written; the file that was there before is intact.
    """
    path = directory / STUDY_FILE
    text = record.model_copy(update={"digest": ""}).model_dump_json(indent=1) + "\n"
    # The digest is inserted as text: it is over the file as it is with an empty digest.
    before, key, after = text.rpartition('"digest": "')  # the last field
    try:
        write_atomically(path, f"{before}{key}{hashlib.sha256(text.encode()).hexdigest()}{after}")
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); correct that and run the same command again, which keeps "
            "every complete trial"
        ) from None
    return path


def load_study(directory: Path) -> StudyRecord:
    """Read the `study.json` of a study's directory.

    Raises:
        RunError: There is none, it is not a study record, or its digest shows that it was changed.
    """
    path, remedy = directory / STUDY_FILE, "give the directory of a `leadspan study`, or run the study again"
    content = path.read_bytes() if path.is_file() else None  # once: a study that runs writes it again and again
    record = load_json(StudyRecord, path, remedy, RunError, content)
    # The digest is taken out as text, as it was put in.
    written = (content or b"").replace(record.digest.encode(), b"")
    if record.digest and hashlib.sha256(written).hexdigest() != record.digest:
        raise RunError(f"{path}: it was changed after it was written (its digest differs); {remedy}")
    return record.model_copy(update={"digest": ""})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a trial, given by its index; `text` is its status line, or why it failed."""

    trial: int
    kind: Literal["started", "said", "done", "failed"]
    text: str = ""


class Board:
    """A block of lines that moves on a terminal while `live` runs; a line per start and end of a trial elsewhere."""

    def __init__(self, console: Console, to_run: Iterable[str]):
        """The titles of the trials to run; those that failed before are tried again."""
        self.console = console
        self.to_start = set(to_run)
        self.running: dict[str, str] = {}
        self._printed_at = 0.0
        # Transient: at the end the block leaves the terminal, and the lines printed above it stay.
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def show(self, record: StudyRecord, title: str, event: Event) -> None:
        """Show that a trial started, reported its status, or ended."""
        self.to_start.discard(title)
        if event.kind == "said":
            self.running[title] = event.text
            if not self.live and time.monotonic() - self._printed_at >= LOG_SECONDS:
                self._print("\n".join(f"  {running}  {doing}" for running, doing in self.running.items()))
        elif event.kind == "started":
            self.running[title] = "starting"
            if not self.live:
                self._print(Text.assemble((headline(record, self.to_start), "dim"), f"  {title}"))
        else:
            self.running.pop(title, None)
            outcome = ("failed", "red") if event.kind == "failed" else ("done", "")
            # The last line of a traceback is its message.
            last = event.text.strip().splitlines()[-1:] or [""]
            self._print(Text.assemble(outcome, f"  {title}  {last[0]}".rstrip()))
        if self.live:
            lines = [Spinner("dots", text=Text(f"{running}: {doing}")) for running, doing in self.running.items()]
            self.live.update(Group(Text(headline(record, self.to_start), style="bold"), *lines))

    def _print(self, text: str | Text) -> None:
        self._printed_at = time.monotonic()
        self.console.print(text, soft_wrap=True, highlight=False)


def headline(record: StudyRecord, to_start: Collection[str] = ()) -> str:
    """`3 of 12 done, 1 failed, about 8 min left`.

    Each remaining trial is taken to need as long as complete ones of its condition, or else of all conditions, divided
    by the number of trials that run at the same time; before the first trial is complete nothing is said of it. A
    failed trial counts as remaining where it is among the titles of those that will be started.
    """
    counts = [f"{len(record.of_state('done'))} of {len(record.trials)} done"]
    failed = len(record.of_state("failed"))
    counts += [f"{failed} failed"] if failed else []
    # By condition: cuts differ in time by design, seeds do not.
    took: dict[str, list[float]] = {}
    for trial in record.of_state("done"):
        if trial.seconds is not None and trial.control != "before":
            took.setdefault(trial.name, []).append(trial.seconds)
    all_seconds = [seconds for of_name in took.values() for seconds in of_name]
    running = record.of_state("running")
    again = [trial for trial in record.of_state("failed") if trial.title in to_start]
    to_come = [*running, *record.of_state("waiting"), *again]
    if all_seconds and to_come:
        total = sum(fmean(took.get(trial.name, all_seconds)) for trial in to_come)
        # Trials at a time share the wall clock.
        counts.append(f"about {duration(total / max(1, len(running)))} left")
    return ", ".join(counts)


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
