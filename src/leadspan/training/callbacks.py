"""What a run records while it trains: `metrics.jsonl`, the clock of the loop, its speed, its profile, its progress."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.status import Progress, report_status
from leadspan.tables import percent
from leadspan.training.result import StepSeconds
from leadspan.training.settings import Profile

logger = logging.getLogger(__name__)

NUM_PARTS = 10
"""Rows of the table of a profile; its trace has every operation."""


@dataclass(eq=False)
class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`, the record that trackers mirror.

    Where training begins, the file is rewritten with the lines that the checkpoint keeps: a killed process may have
    written lines of later steps, and these steps are trained again.
    """

    path: Path

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the lines up to the step training starts from."""
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(_line(line["step"], line) for line in state.log_history))

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one line; a loss that is not finite ends the run."""
        if not state.is_world_process_zero or not logs:
            return
        # The line comes before the error, so that the record shows where the loss diverged.
        with self.path.open("a") as file:
            file.write(_line(state.global_step, logs))
        for name, loss in (("training", logs.get("loss", 0.0)), ("validation", logs.get("eval_loss", 0.0))):
            if not math.isfinite(loss):
                raise RunError(
                    f"step {state.global_step}: the {name} loss is {loss}; lower training.learning_rate or "
                    "look at the examples of these steps with `leadspan preview`"
                )


def _line(step: float, logs: dict[str, float]) -> str:
    """One line of JSON; null for what is not finite, since JSON has no infinity and no NaN."""
    # Sorted, so that lines compare whichever callback wrote a key first.
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in sorted(logs.items())}
    return json.dumps({"step": step, **finite}, allow_nan=False) + "\n"


@dataclass(eq=False)
class Clock(TrainerCallback, ExportableState):
    """Wall time of all optimiser steps, without validation and checkpoints, and of their parts.

    The clock waits for the device where a step begins and ends, and not in between: CUDA events mark the parts there,
    so that measuring does not slow a step down. The state is kept in checkpoints and restored.
    """

    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    first_step: float | None = None
    num_cold_steps: int = 0
    cold_seconds: float = 0.0
    durations: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start = 0.0
        # Name, start and end of the parts of the step under way; their times are read once the step has ended.
        self._spans: list[tuple[str, Any, Any]] = []
        self._lap = (0, 0.0)  # steps and seconds since the last log line

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {each.name: getattr(self, each.name) for each in fields(self)}, "attributes": {}}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block as a part; parts may be nested."""
        start = _mark()
        with record_function(name):  # a profile shows the parts by their names
            yield
        self._spans.append((name, start, _mark()))

    def lap(self) -> tuple[int, float]:
        """Steps since the last call, and how long they took."""
        lap, self._lap = self._lap, (0, 0.0)
        return lap

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget the parts since the last step: those of a validation belong to no step."""
        self._spans.clear()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        _wait_for_device()
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and add up the parts."""
        _wait_for_device()
        lasted = time.perf_counter() - self._start
        for name, start, end in self._spans:
            span = start.elapsed_time(end) / 1000 if isinstance(start, torch.cuda.Event) else end - start
            self.parts[name] = self.parts.get(name, 0.0) + span
            if name == "rollout":  # drawn before the step begins, and part of its time
                lasted += span
        self._spans.clear()
        self.seconds += lasted
        # The last of these steps leaves the time of the whole stage.
        if state.global_step <= self.num_cold_steps:
            self.cold_seconds = self.seconds
        self.durations.append(lasted)
        self._lap = (self._lap[0] + 1, self._lap[1] + lasted)
        # Kept apart: the first step compiles and allocates.
        self.first_step = lasted if self.first_step is None else self.first_step

    def by_part(self) -> StepSeconds:
        """Where the time of all steps went; the rest of a micro-batch is its backward pass."""
        # The backward pass cannot be timed by itself without a wait in between, so it is what remains of the others.
        timed = {name: self.parts.get(name, 0.0) for name in ("rollout", "data", "teacher", "student_forward")}
        batches = self.parts.get("micro_batch", 0.0)
        return StepSeconds(
            **timed,
            backward=max(0.0, batches - timed["teacher"] - timed["student_forward"]),
            # Clamped, since the parts and the whole are read from different clocks.
            optimizer=max(0.0, self.seconds - batches - timed["rollout"]),
        )


@dataclass(eq=False)
class EnergyMeter(TrainerCallback, ExportableState):
    """Energy of this rank's GPU from the first step to the last, by NVML's counter (Volta and later).

    **Source**: NVML API reference, `nvmlDeviceGetTotalEnergyConsumption`, millijoules since the driver was loaded.
    """

    joules: float | None = 0.0  # of the processes before this one; None where one of them could not measure
    _read: Callable[[], int] | None = None
    _start: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the energy up to now."""
        return {"args": {"joules": self.total}, "attributes": {}}

    @property
    def total(self) -> float | None:
        """Joules up to now; None on a CPU, without `nvidia-ml-py`, or where the GPU has no counter, at any time."""
        if self._read is None or self.joules is None:
            return None
        return self.joules + self._read() / 1000 - self._start / 1000

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Look for the counter of the device, and read it for the first time."""
        if args.device.type != "cuda":
            return
        try:
            import pynvml  # pyright: ignore[reportMissingImports]  # the extra `nvml`
        except ImportError:
            logger.info("energy is not measured: nvidia-ml-py is not installed (pip install 'leadspan[nvml]')")
            return
        try:
            pynvml.nvmlInit()
            # Visible devices may be numbered anew, ids are not.
            uuid = torch.cuda.get_device_properties(args.device).uuid
            read = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            self._start = read()
        except pynvml.NVMLError as error:
            logger.info("energy is not measured: NVML says %s", error)
            return
        self._read = read


def _mark() -> Any:
    """A point in time: on CUDA an event in the queue, else the clock."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    # An event is queued behind the work and costs no wait; its time is read when the step has ended.
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _wait_for_device() -> None:
    """Wait until queued work has ended, so that its time is counted where it belongs."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@dataclass(eq=False)
class ProgressCallback(TrainerCallback):
    """Reports steps, time left, loss and speed on the status line."""

    stage: str = "training"
    work: Sequence[float] | None = None  # of each step, where some are known to take longer than others
    figures: dict[str, float] = field(default_factory=dict)  # none is logged yet
    _steps: Progress | None = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember loss and speed."""
        self.figures |= logs or {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Name the stage: a first step may draw rollouts, whose progress is shown after it, or compile for long."""
        report_status(self.stage)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start to count at the step where this process starts to train."""
        self._steps = self._steps or Progress(self.stage, state.max_steps, "steps", state.global_step, self.work)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Report steps, loss and speed."""
        loss, speed = self.figures.get("loss"), self.figures.get("speed/tokens_per_second")
        detail = "" if loss is None else f", loss {loss:.4f}"
        detail += "" if speed is None else f", {speed:,.0f} tokens/s"
        if self._steps is not None:
            self._steps.report(state.global_step, detail)


@dataclass(eq=False)
class StepProfiler(TrainerCallback):
    """Profiles a few steps after the skipped ones, and writes `trace-RANK.json.gz` and `parts-RANK.md`.

    The latter is a table of the operations that took the most time: the device's where one was recorded, else the
    processor's.
    """

    settings: Profile
    directory: Path
    rank: int
    _profile: profile | None = None
    _num_steps: int = 0  # of this process, so that a resumed run is profiled as well

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start recording after the skipped steps."""
        if self._num_steps == self.settings.skip:
            activities = {ProfilerActivity.CPU}
            activities |= {ProfilerActivity.CUDA} if args.device.type == "cuda" else set()
            self._profile = profile(activities=activities)
            self._profile.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop after the last step to record."""
        self._num_steps += 1
        if self._num_steps == self.settings.skip + self.settings.steps:
            self._write()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write what was recorded of a run that ended before the last step to record."""
        self._write()
        if self._num_steps <= self.settings.skip:
            logger.warning(
                "training.profile.skip = %d: training ended after %d steps, so there is no profile",
                *(self.settings.skip, self._num_steps),
            )

    def _write(self) -> None:
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels of the last step are still queued
        self._profile.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.directory / f"trace-{self.rank}.json.gz"))
        # Annotations, such as the clock's parts, span operations that are in the table already.
        events = [event for event in self._profile.key_averages() if not event.is_user_annotation]
        clock = "device" if any(event.self_device_time_total for event in events) else "processor"
        # Microseconds, without the operations that one called.
        time_of = attrgetter("self_device_time_total" if clock == "device" else "self_cpu_time_total")
        total = sum(map(time_of, events)) or 1.0  # of nothing recorded, all shares are 0
        lines = [f"| operation | {clock} s | share | calls |", "| --- | --- | --- | --- |"]
        for event in sorted(events, key=time_of, reverse=True)[:NUM_PARTS]:
            name, lasted = event.key.replace("|", " "), time_of(event)
            lines.append(f"| {name} | {lasted / 1e6:.4f} | {percent(lasted / total, 1)} | {event.count:,} |")
        table = "\n".join(lines) + "\n"
        write_atomically(self.directory / f"parts-{self.rank}.md", table)
        logger.info("profile of %d steps: %s\n%s", self.settings.steps, self.directory, table)
        self._profile = None
