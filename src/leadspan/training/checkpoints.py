"""Checkpoints of a run: sealed with the digests of their files, named by their step, resumed from only when whole.

Beside the files of Transformers, a checkpoint holds a `Handover` to the process that resumes from it.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from leadspan.errors import RunError
from leadspan.files import beginning_hash, fault, is_sealed, seal, unseal
from leadspan.ranks import process_state
from leadspan.text import first_line
from leadspan.training.result import CHECKPOINTS_DIR, IDENTITY_FILE

logger = logging.getLogger(__name__)

# Words of torch's messages where a write fails: it raises a RuntimeError, not an OSError.
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")
# Checkpoints on disk: the last one, to resume from, and the best one or the one before the last.
_NUM_KEPT = 2
_HANDOVER_FILE = "handover.json"


@dataclass(frozen=True)
class Handover:
    """State that a process leaves for the next one, in addition to Transformers'.

    It holds the sums since the last log line, so that the next line is a mean over the same steps as in a run without a
    break.
    """

    loss: float  # sum of the losses of the steps since the last log line, the mean over ranks
    last_logged: int  # step of the last log line
    totals: list[list[float]]  # row quantities by section and tenth since the last log line, over all ranks
    peak_memory_bytes: int  # peak memory of training up to the checkpoint, on the first rank
    steps: dict[str, Any]  # state of `Rollouts`: what they have drawn for later steps
    # Name, size and SHA-256 of the record of rollouts beside the checkpoints; None without one.
    recorded: tuple[str, int, str] | None = None

    def complete(self, checkpoint: Path) -> None:
        """Add it to a checkpoint, with a copy of the identity of the run, and seal that."""
        (checkpoint / _HANDOVER_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")
        identity = checkpoint.parents[1] / IDENTITY_FILE
        if identity.exists():
            shutil.copyfile(identity, checkpoint / IDENTITY_FILE)
        seal(checkpoint)  # last, since it vouches for all files

    @classmethod
    def of(cls, checkpoint: Path) -> "Handover":
        """Read that of a complete checkpoint."""
        return cls(**json.loads((checkpoint / _HANDOVER_FILE).read_text(encoding="utf-8")))


def step_directories(directory: Path) -> list[Path]:
    """Checkpoints of a run directory, complete or not, oldest first."""
    steps = [d for d in (directory / CHECKPOINTS_DIR).glob("checkpoint-*") if d.name.rpartition("-")[2].isdecimal()]
    return sorted(steps, key=step_of)


def checkpoint_to_resume(directory: Path, needs_best: bool) -> Path | None:
    """The last whole checkpoint of a run directory, or None.

    A checkpoint that a killed process left half-written or half-removed is deleted. One that is damaged, whose best
    step is gone, or whose record of earlier steps is damaged is renamed to `*.damaged` with a warning that names the
    fault.
    """
    # One rank changes the directory, and the others read it only after that.
    checkpoints = step_directories(directory) if process_state().is_main_process else []
    half_written = [checkpoint for checkpoint in checkpoints if not is_sealed(checkpoint)]
    for checkpoint in half_written:
        logger.warning("removing %s: it was not written to the end", checkpoint)
        shutil.rmtree(checkpoint)
    is_changed, is_used = bool(half_written), False
    for checkpoint in reversed([checkpoint for checkpoint in checkpoints if checkpoint not in half_written]):
        wrong = _wrong(checkpoint)
        if wrong is None and (recorded := Handover.of(checkpoint).recorded) is not None:
            name, size, digest = recorded
            if beginning_hash(directory / name, size) != digest:
                wrong = f"{name}, up to its step, has changed since it was written"
        # The best step that an earlier checkpoint names may have been replaced since.
        if wrong is None and needs_best and not is_used:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            best = state["best_global_step"]
            if best and best != step_of(checkpoint) and (gone := _wrong(checkpoint.with_name(f"checkpoint-{best}"))):
                wrong = f"its best step is {best}, and of checkpoint-{best} {gone}"
        if wrong is None:
            is_used = True
            continue
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        if aside.exists():  # of an earlier resume from the same step
            shutil.rmtree(aside)
        checkpoint.rename(aside)
        logger.warning("%s: %s; set aside as %s", checkpoint, wrong, aside.name)
        is_changed = True
    process_state().wait_for_everyone()
    last = next(reversed(step_directories(directory)), None)
    if is_changed:
        logger.warning("going on from %s", f"step {step_of(last)}" if last else "the start: no checkpoint is whole")
    return last


def check_best(checkpoint: Path) -> None:
    """Check the checkpoint of the best step, before its weights are loaded.

    Raises:
        RunError: It is gone or damaged.
    """
    wrong = _wrong(checkpoint)
    if wrong:
        raise RunError(
            f"{checkpoint}: {wrong}, and it holds the weights of the best step; --resume trains them again, "
            "or keeps the last weights with training.keep=last"
        )


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn the errors of torch and safetensors for a file that cannot be written into one error.

    Raises:
        RunError: A file could not be written completely; says how much space is free.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        is_of_writer = isinstance(error, SafetensorError) or any(name in str(error) for name in _TORCH_WRITER)
        if not is_of_writer:
            raise
        free = shutil.disk_usage(directory.parent).free
        raise RunError(
            f"{directory}: cannot be written to its end ({first_line(error)}; {free / 1e9:.3g} GB are free "
            "there); make room, then continue with --resume"
        ) from None


def remove_old(directory: Path, best_step: int | None) -> None:
    """Remove all checkpoints but the last and the best, or the two last."""
    *earlier, last = step_directories(directory)
    best = [d for d in earlier if step_of(d) == best_step]
    to_keep = {last, *(best or earlier[1 - _NUM_KEPT :])}
    for checkpoint in earlier:
        if checkpoint not in to_keep:
            unseal(checkpoint)  # first, so that a checkpoint that is half removed does not count as one
            shutil.rmtree(checkpoint)


def _wrong(checkpoint: Path) -> str | None:
    if not checkpoint.exists():
        return "it is gone"
    return fault(checkpoint) if is_sealed(checkpoint) else "it was not written to the end"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is of."""
    return int(checkpoint.name.rpartition("-")[2])
