"""One side of `gkd_step`: `python -m benchmarks.gkd_sides leadspan|trl VOCAB STEPS [WIDTHS]` prints one JSON line.

WIDTHS are width and layers of student and teacher, 64 2 128 4 when they are left out.
"""

import json
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer
from transformers.utils import logging

from benchmarks.gkd_step import SHAPES
from benchmarks.memory import peak_resident, reset_peak_resident
from benchmarks.steps import device_and_gpu, plan_arguments, step_options, timed_training
from benchmarks.sums import tiny_model, tokenised_traces, train_tokenizer
from leadspan.data.examples import Example
from leadspan.data.packing import pack
from leadspan.data.supervision import COT, PROMPT
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.teacher.source import LiveTeacher
from leadspan.teacher.targets import freeze
from leadspan.training.trainer import DistillationTrainer, attach_objective

BATCH, MAX_TOKENS, WARM_UP = 4, 512, 2


@dataclass(frozen=True)
class World:
    """What both sides are given."""

    tokenizer: PreTrainedTokenizerFast
    student: PreTrainedModel
    teacher: PreTrainedModel
    teacher_settings: RandomInit
    rows: list[tuple[str, list[int], int]]
    """Prompt text, token ids, prompt tokens."""


def main() -> None:
    side, vocab_size, num_steps, *shapes = sys.argv[1], *map(int, sys.argv[2:])
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    world = _world(vocab_size, WARM_UP + num_steps, tuple(shapes) or SHAPES, side == "leadspan")
    with tempfile.TemporaryDirectory() as output:
        build = _leadspan if side == "leadspan" else _trl
        trainer, first_batch = build(world, output, WARM_UP + num_steps)
        print(json.dumps(_measure(trainer, first_batch)))


def _world(vocab_size: int, num_steps: int, shapes: tuple[int, ...], for_leadspan: bool) -> World:
    tokenizer = train_tokenizer(vocab_size)
    settings = [tiny_model(*shapes[2 * i : 2 * i + 2], vocab_size, seed=i) for i in range(2)]
    student, teacher = (load_model(s, torch.float32, for_training=for_leadspan) for s in settings)
    rows = list(tokenised_traces(tokenizer, max(64, BATCH * num_steps), 42, MAX_TOKENS))
    return World(tokenizer, student, freeze(teacher), settings[1], rows[: BATCH * num_steps])


def _leadspan(world: World, output: str, num_steps: int) -> tuple[Trainer, Any]:
    examples = [_example(ids, num_prompt) for _, ids, num_prompt in world.rows]
    attach_objective(world.student, LossSettings(kl_weight=1.0, temperature=1.0), None)
    plan = [list(range(BATCH * i, BATCH * (i + 1))) for i in range(num_steps)]
    arguments = plan_arguments(output, num_steps)
    teacher = LiveTeacher(world.teacher_settings, world.teacher)
    trainer = DistillationTrainer(world.student, teacher, examples, None, plan, [], arguments)
    return trainer, pack(examples[:BATCH])


def _example(ids: list[int], num_prompt: int) -> Example:
    is_reply = np.arange(len(ids)) >= num_prompt
    sections = np.where(is_reply, COT, PROMPT).astype(np.int8)
    return Example(np.array(ids), is_reply.astype(np.float32), sections, np.zeros_like(sections), "")


def _trl(world: World, output: str, num_steps: int) -> tuple[Trainer, Any]:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    columns = [
        {"prompt": prompt, "input_ids": ids, "completion_mask": [0] * num_prompt + [1] * (len(ids) - num_prompt)}
        for prompt, ids, num_prompt in world.rows
    ]
    arguments = GKDConfig(
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        max_length=MAX_TOKENS,
        per_device_train_batch_size=BATCH,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        **step_options(output, num_steps),
    )
    data = Dataset.from_list(columns)
    trainer = GKDTrainer(
        model=world.student,
        teacher_model=world.teacher,
        args=arguments,
        train_dataset=data,
        processing_class=world.tokenizer,
    )
    return trainer, trainer.data_collator([data[i] for i in range(BATCH)])


def _measure(trainer: Trainer, first_batch: Any) -> dict[str, Any]:
    """Untrained loss on the first batch, then the steps; what they add to memory."""
    with torch.no_grad():
        batch = trainer._prepare_inputs(first_batch)
        untrained = float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=_num_weighted(batch)))
    device, gpu = device_and_gpu()
    before = _reset_peak(device)
    timer = timed_training(trainer)
    return {
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "untrained_loss": untrained,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "wall_seconds": timer.wall[WARM_UP:],
        "processor_seconds": timer.processor[WARM_UP:],
        "memory_growth": _peak(device) - before,
    }


def _num_weighted(batch: Any) -> torch.Tensor:
    return batch["weights"].sum() if "weights" in batch else (batch["labels"] != -100).sum()


def _reset_peak(device: torch.device) -> int:
    if device.type == "cpu":
        return reset_peak_resident()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    return peak_resident() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


if __name__ == "__main__":
    main()
