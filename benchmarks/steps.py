"""Optimiser steps of a Transformers trainer, timed one by one."""

import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback


class StepTimer(TrainerCallback):
    """Wall and processor seconds of every optimiser step: forward, backward, clipping, update; no data loading."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        _wait()
        self._start = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        _wait()
        self.wall.append(time.perf_counter() - self._start[0])
        self.processor.append(time.process_time() - self._start[1])


def timed_training(trainer: Trainer) -> StepTimer:
    """Train with a timer."""
    timer = StepTimer()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(timer)
    trainer.train()
    return timer


def step_options(output: str, num_steps: int, learning_rate: float = 1e-3, bf16: bool = False) -> dict[str, Any]:
    """Arguments both trainers get: one device, constant learning rate, nothing saved or reported."""
    return {
        "output_dir": output,
        "max_steps": num_steps,
        "gradient_accumulation_steps": 1,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": bf16,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def plan_arguments(output: str, num_steps: int, **options: Any) -> TrainingArguments:
    """Arguments for a trainer that is given its batches as a plan; `options` as of `step_options`."""
    return TrainingArguments(**step_options(output, num_steps, **options), remove_unused_columns=False)


def device_and_gpu() -> tuple[torch.device, str | None]:
    """The device trainers will take, and its name if it is a GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0), torch.cuda.get_device_name(0)
    return torch.device("cpu"), None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
