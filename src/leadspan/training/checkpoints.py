"""Checkpoints of a run: which were written to the end, and whether the one to go on from can be read."""

import json
import logging
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from leadspan.errors import RunError
from leadspan.training.process import process_state

logger = logging.getLogger(__name__)


def complete_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints that were written to the end, oldest first: Transformers writes `trainer_state.json` last."""
    found = [d for d in directory.glob("checkpoint-*") if _is_json(d / "trainer_state.json")]
    return sorted(found, key=lambda d: int(d.name.rpartition("-")[2]))


def checkpoint_to_resume(directory: Path, resume: bool) -> Path | None:
    """The last complete checkpoint of a run directory; one that a killed process left half-written is removed.

    Raises:
        RunError: There are checkpoints and `resume` is off, or the last one has a damaged file.
    """
    checkpoints = directory / "checkpoints"
    complete = complete_checkpoints(checkpoints)
    if complete and not resume:
        raise RunError(
            f"{directory}: it holds checkpoints of an earlier run up to step {_step(complete[-1])}; "
            "go on with --resume, or give another output"
        )
    if process_state().is_main_process:
        for left in set(checkpoints.glob("checkpoint-*")) - set(complete):
            logger.warning("removing %s: it was not written to the end", left)
            shutil.rmtree(left)
    process_state().wait_for_everyone()
    if not complete:
        return None
    _check_readable(complete)
    return complete[-1]


def _check_readable(complete: list[Path]) -> None:
    """Look into the files of the last checkpoint: a disk that ran full leaves them cut off, the list of steps whole.

    Raises:
        RunError: One is cut off or no such file; names it, and what to go on from.
    """
    last = complete[-1]
    for path in sorted(path for path in last.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".safetensors")):
        fault = _fault(path)
        if fault:
            earlier = f"from step {_step(complete[-2])}" if len(complete) > 1 else "from the start"
            raise RunError(f"{path}: damaged ({fault}); remove {last}, and --resume goes on {earlier}")


def _fault(path: Path) -> str | None:
    """What is wrong with the frame of a file; its numbers are not read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                return None
        with zipfile.ZipFile(path):
            return None
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        return str(error)


def _step(checkpoint: Path) -> str:
    return checkpoint.name.rpartition("-")[2]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
