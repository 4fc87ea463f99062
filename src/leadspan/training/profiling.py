"""A profile of some steps of a run: PyTorch's trace, and a table of what took most of their time."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerState

from leadspan.files import write_atomically
from leadspan.training.settings import Profile

logger = logging.getLogger(__name__)

# Rows of the table; the trace has every operation.
NUM_PARTS = 10


class StepProfiler(TrainerCallback):
    """Profiles a few steps after the skipped ones, and writes `trace-RANK.json.gz` and `parts-RANK.md`."""

    def __init__(self, settings: Profile, directory: Path, rank: int):
        self.settings, self.directory, self.rank = settings, directory, rank
        self._profile: profile | None = None
        self._num_steps = 0  # of this process, so that a resumed run is profiled as well

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
        table = dearest_parts(self._profile)
        write_atomically(self.directory / f"parts-{self.rank}.md", table)
        logger.info("profile of %d steps: %s\n%s", self.settings.steps, self.directory, table)
        self._profile = None


def dearest_parts(recorded: profile) -> str:
    """A Markdown table of the operations that took the most time, without the operations that they called.

    The time is the device's where one was recorded, else the processor's; shares are of all operations.
    """
    # Annotations, such as the clock's parts, span operations that are in the table already.
    events = [event for event in recorded.key_averages() if not event.is_user_annotation]
    on_device = any(event.self_device_time_total for event in events)

    def seconds(event: Any) -> float:
        return (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6

    total = sum(map(seconds, events)) or 1.0  # of nothing recorded, all shares are 0
    rows = [
        f"| {event.key.replace('|', ' ')} | {seconds(event):.4f} | {seconds(event) / total:.1%} | {event.count:,} |"
        for event in sorted(events, key=seconds, reverse=True)[:NUM_PARTS]
    ]
    where = "device" if on_device else "processor"
    return "\n".join([f"| operation | {where} s | share | calls |", "| --- | --- | --- | --- |", *rows]) + "\n"
