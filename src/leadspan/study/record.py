"""The file of a study: all its trials, with the state and the run directory of each."""

import hashlib
from pathlib import Path
from typing import Literal

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.recipe import TrialControl
from leadspan.settings import Amount, Count, Settings, load_json
from leadspan.study.settings import Study

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
    """What the condition varies besides the cut, in the words of the study's axes."""
    note: str = ""
    """Remark that reports show."""
    directory: str
    """Run directory, relative to the study's."""
    fingerprint: str
    """Identifies settings and data."""
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
    record = load_json(StudyRecord, path, remedy, RunError)
    # The digest is taken out as text, as it was put in.
    written = path.read_bytes().replace(record.digest.encode(), b"")
    if record.digest and hashlib.sha256(written).hexdigest() != record.digest:
        raise RunError(f"{path}: it was changed after it was written (its digest differs); {remedy}")
    return record.model_copy(update={"digest": ""})
