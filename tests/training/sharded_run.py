"""A command of leadspan as one of several ranks whose student and teacher accelerate shards with FSDP2, on CPUs.

accelerate shards where a group of GPUs trains; here it is told that the group is one.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import DistributedType
from torch.distributed.tensor import DTensor

import sharded_gradients
from leadspan.cli import main as run_command
from leadspan.data.packing import pack
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.ranks import leave_ranks, process_state
from leadspan.teacher.source import LiveTeacher
from leadspan.teacher.targets import DenseTargets, freeze, live_targets
from toys import character_tokenizer

_VARIABLES = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
_VARIABLES |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def main(*arguments: str) -> int:
    _shard()
    return run_command(arguments)


def check_teacher(settings: RandomInit) -> None:
    """Compare the targets of a teacher that accelerate has prepared with those of a whole one."""
    _shard()
    process_state()
    whole, teacher = freeze(load_model(settings, torch.float32)), LiveTeacher(settings)
    teacher.load(torch.float32, character_tokenizer())
    teacher.prepare(Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin()))
    assert teacher.model is not None and all(isinstance(weight, DTensor) for weight in teacher.model.parameters())
    for rows in sharded_gradients.rows():
        ours, theirs = live_targets(whole, pack(rows)), teacher.targets(pack(rows))
        assert isinstance(theirs, DenseTargets)
        torch.testing.assert_close(theirs.hidden, ours.hidden)
        torch.testing.assert_close(theirs.head, ours.head)
    leave_ranks()


def _shard() -> None:
    os.environ.update(_VARIABLES)
    begin = PartialState.__init__

    def begin_as_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_as_gpus
