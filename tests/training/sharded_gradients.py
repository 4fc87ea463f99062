"""Gradients of one step with student and teacher sharded by FSDP2 over the ranks, each rank with its own examples.

The head is sharded with the `root`, or on its `own` (a group that no forward call gathers). With the models' `own`
attention a rank makes as many passes as it has lengths of examples. Rank 0 writes the gathered gradients.
"""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import pack
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.ranks import leave_ranks
from leadspan.teacher.targets import freeze, live_targets
from leadspan.training.trainer import attach_objective
from toys import VOCAB, tiny


def models(attention: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Student with its objective attached, and a frozen teacher; heads of their own, not tied."""
    settings = tiny(seed=1, tie_word_embeddings=False), tiny(hidden=48, seed=2, tie_word_embeddings=False)
    student, teacher = (
        load_model(model.model_copy(update={"attention": attention}), torch.float32) for model in settings
    )
    attach_objective(student, LossSettings(), None)
    return student, freeze(teacher)


def rows() -> list[list[Example]]:
    """One example for the first rank and two for the second, of different lengths."""
    generator = np.random.default_rng(0)
    found = []
    for length in (17, 30, 11):
        weights = np.r_[np.zeros(5), np.ones(length - 5)].astype(np.float32)
        sections = np.ones(length, dtype=np.int8)
        found.append(Example(generator.integers(0, VOCAB, length), weights, sections, np.zeros_like(sections), ""))
    return [found[:1], found[1:]]


def main(path: Path, head: str, attention: str) -> None:
    dist.init_process_group("gloo")
    keep_gradients(path, head, attention)
    leave_ranks()


def keep_gradients(path: Path, head: str, attention: str) -> None:
    student, teacher = models(attention)
    for model in (student, teacher):
        for layer in model.model.layers:
            fully_shard(layer)
        if head == "own":
            fully_shard(model.lm_head)
        fully_shard(model)
    batch = pack(rows()[dist.get_rank()])
    output = student(batch=batch, targets=live_targets(teacher, batch))
    (output["loss_sum"] * dist.get_world_size()).backward()
    gradients = {name: p.grad.full_tensor() for name, p in student.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(gradients, path)
