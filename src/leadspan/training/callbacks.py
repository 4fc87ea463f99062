"""What a run records while it trains: `metrics.jsonl`, the clock of the loop, its speed, progress on a terminal."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from leadspan.costs.measure import EnergyCounter
from leadspan.errors import RunError
from leadspan.results import StepSeconds

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`, the record that trackers mirror.

    JSON has no infinity and no NaN: such a value is written as null.

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
            file.write(json.dumps({"step": state.global_step, **_finite(logs)}, allow_nan=False) + "\n")
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise RunError(
                f"step {state.global_step}: the training loss is {loss}; lower training.learning_rate or "
                "look at the examples of these steps with `leadspan preview`"
            )


def _finite(logs: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}


class Clock(TrainerCallback, ExportableState):
    """Wall time of all optimiser steps, without validation and checkpoints, and of their parts.

    The device is waited for where a step begins and ends, not in between: there CUDA's own events mark the parts, so
    that measuring does not slow a step down. Kept in checkpoints and restored.
    """

    def __init__(
        self, seconds: float = 0.0, parts: dict[str, float] | None = None, first_step: float | None = None
    ) -> None:
        self.seconds, self.first_step = seconds, first_step
        self.parts: dict[str, float] = parts or {}
        self._start = 0.0
        self._spans: list[tuple[str, Any, Any]] = []
        self._lap = (0, 0.0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"seconds": self.seconds, "parts": self.parts, "first_step": self.first_step}
        return {"args": kept, "attributes": {}}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done inside as a part; parts may lie within each other."""
        start = _mark()
        yield
        self._spans.append((name, start, _mark()))

    def lap(self) -> tuple[int, float]:
        """Steps since the last call, and how long they took."""
        lap, self._lap = self._lap, (0, 0.0)
        return lap

    def drop(self) -> None:
        """Forget the parts since the last step: they belong to no step."""
        self._spans.clear()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        _wait_for_device()
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock, and add up the parts."""
        _wait_for_device()
        lasted = time.perf_counter() - self._start
        self.seconds += lasted
        self._lap = (self._lap[0] + 1, self._lap[1] + lasted)
        self.first_step = lasted if self.first_step is None else self.first_step
        for name, start, end in self._spans:
            self.parts[name] = self.parts.get(name, 0.0) + _between(start, end)
        self._spans.clear()

    def by_part(self) -> StepSeconds:
        """Where the time of all steps went; what is left of a micro-batch is its backward pass."""
        teacher, forward = self.parts.get("teacher", 0.0), self.parts.get("student_forward", 0.0)
        batches = self.parts.get("micro_batch", 0.0)
        return StepSeconds(
            data=self.parts.get("data", 0.0),
            teacher=teacher,
            student_forward=forward,
            backward=max(0.0, batches - teacher - forward),
            optimizer=max(0.0, self.seconds - batches),
        )


class EnergyMeter(TrainerCallback, ExportableState):
    """Energy of this rank's GPU from the first step to the last, by NVML's counter; kept in checkpoints."""

    def __init__(self, joules: float = 0.0) -> None:
        self.joules = joules
        self._counter: EnergyCounter | None = None
        self._start = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the energy up to now."""
        return {"args": {"joules": self.total or 0.0}, "attributes": {}}

    @property
    def total(self) -> float | None:
        """Joules up to now; None where nothing can be read."""
        return None if self._counter is None else self.joules + self._counter.read() - self._start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where the counter stands."""
        self._counter = EnergyCounter.of(args.device)
        self._start = 0.0 if self._counter is None else self._counter.read()


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


def _mark() -> Any:
    """A moment: on CUDA an event in the queue, else the clock."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return start.elapsed_time(end) / 1000 if isinstance(start, torch.cuda.Event) else end - start


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
