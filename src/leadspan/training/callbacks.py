"""What a run records while it trains: `metrics.jsonl`, the clock of the loop, progress on a terminal."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from leadspan.errors import RunError

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`, the record that trackers mirror.

    After a resume, lines of steps that are trained again are dropped first.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cut the record back to the step training starts from."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        whole, _, _ = self.path.read_text().rpartition("\n")  # a killed process may leave half a line
        lines = [json.loads(line) for line in whole.splitlines()]
        kept = [line for line in lines if line["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line; a loss that is not finite ends the run."""
        if not state.is_world_process_zero or not logs:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise RunError(
                f"step {state.global_step}: the training loss is {loss}; lower training.learning_rate or "
                "look at the examples of these steps with `leadspan preview`"
            )


class Clock(TrainerCallback, ExportableState):
    """Wall time of all optimiser steps, without validation and checkpoints; kept in checkpoints and restored."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._start = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"seconds": self.seconds}, "attributes": {}}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        _wait_for_device()
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        _wait_for_device()
        self.seconds += time.perf_counter() - self._start


class Milestones(TrainerCallback):
    """Validates at the last step, and logs wherever a checkpoint is written.

    A logged loss is a mean since the last log line; with a line at every checkpoint a resumed run takes its means over
    the same steps as an uninterrupted one.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a validation at the last step, and for a log line before a checkpoint."""
        is_last = state.global_step == state.max_steps
        control.should_evaluate |= is_last and args.eval_strategy != "no"
        control.should_log |= is_last or control.should_evaluate or state.global_step % args.save_steps == 0


def _wait_for_device() -> None:
    """Let queued work end, so that it is counted where it belongs."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class Progress(TrainerCallback):
    """Tells a few times a second how far training is."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.loss = math.nan
        self._told = 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell step and loss."""
        if time.perf_counter() - self._told > 0.2:
            self._told = time.perf_counter()
            self.say(f"training: step {state.global_step}/{state.max_steps}, loss {self.loss:.4f}")
