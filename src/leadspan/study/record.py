"""The file of a study: all its trials, how far each is, and where its run directory lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from leadspan.errors import RunError
from leadspan.settings import Settings

STUDY_FILE = "study.json"

State = Literal["waiting", "running", "done", "failed"]


class TrialRecord(Settings):
    """One trial of a study."""

    name: str
    """The condition, the same for all seeds."""
    seed: int
    """Seed of the trial."""
    control: str | None = None
    """The control it belongs to; absent for a condition of the axes; `before` for a run the trials need."""
    note: str = ""
    """What a reader must know about it."""
    directory: str
    """Run directory, relative to the study's."""
    fingerprint: str
    """Identifies settings and data."""
    state: State
    """How far it is; `running` in a study that is not being run means that it was interrupted."""
    message: str = ""
    """What a failed trial died of."""
    seconds: float | None = None
    """Wall time of the trial, the last attempt alone."""

    @property
    def title(self) -> str:
        """Condition and seed; what is not trained for the study has no seed of its own."""
        return self.name if self.control in ("before", "base", "teacher") else f"{self.name}, seed {self.seed}"


class StudyRecord(Settings):
    """A study and its trials."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    name: str
    """Name of the study."""
    study: dict[str, Any]
    """Its resolved settings."""
    trials: list[TrialRecord]
    """Runs that come first, then conditions and controls in the order in which they are run."""
    notes: list[str] = []
    """Controls that could not be made, and why."""

    def of_state(self, state: State) -> list[TrialRecord]:
        """The trials of one state."""
        return [trial for trial in self.trials if trial.state == state]


def save_study(record: StudyRecord, directory: Path) -> Path:
    """Write `study.json` atomically.

    Raises:
        RunError: It cannot be written; what was there before is whole.
    """
    path = directory / STUDY_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".json.tmp")
        staged.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); mend that and run the same command again, which keeps "
            "every complete trial"
        ) from None
    return path


def load_study(directory: Path) -> StudyRecord:
    """Read the `study.json` of a study's directory.

    Raises:
        RunError: There is none, or it is not one of ours.
    """
    path = directory / STUDY_FILE
    try:
        return StudyRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{path}: not found; give the directory of a `leadspan study`") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise RunError(f"{path}: not the file of a study ({place}: {first['msg']}); run the study again") from None


def done_trials(directory: Path) -> list[TrialRecord]:
    """The complete trials of a study, in its order.

    Raises:
        RunError: The study's file cannot be read, or no trial is complete.
    """
    record = load_study(directory)
    found = record.of_state("done")
    if not found:
        raise RunError(f"{directory}: none of the {len(record.trials)} trials of the study is complete; run the study")
    return found


def missing_trials(paths: Sequence[Path]) -> list[str]:
    """One sentence for each trial of the studies among some directories that has no result, and why."""
    found: list[str] = []
    for path in paths:
        if (path / STUDY_FILE).exists():
            trials = [trial for trial in load_study(path).trials if trial.state != "done"]
            found += [f"{trial.title}: {trial.message or 'not run to its end'}" for trial in trials]
    return found
