"""Counts the bytes that a rank sends in one optimiser step of one micro-batch, with DDP or FSDP2.

The teacher is whole beside a DDP student, and sharded beside one of FSDP2. Rank 0 writes sent bytes by collective as
JSON; a ring sends `(N - 1) / N` of what is gathered or scattered, twice that of what is reduced.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sharded_gradients
from leadspan.data.packing import pack
from leadspan.ranks import leave_ranks
from leadspan.teacher.targets import live_targets

PASSES = {"allgather": 1, "all_gather": 1, "reduce_scatter": 1, "allreduce": 2}


class SentBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = next((name for name in PASSES if name in str(func) and "c10d" in str(func)), None)
        if name is not None:
            # Of a gather the output is the larger tensor, of a scatter the input.
            whole = max(t.nbytes for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor))
            ranks = dist.get_world_size()
            self.sent[name.replace("_", "")] += PASSES[name] * whole * (ranks - 1) // ranks
        return result


def main(path: Path, sharding: str) -> None:
    dist.init_process_group("gloo")
    sent = sent_in_a_step(sharding)
    if dist.get_rank() == 0:
        path.write_text(json.dumps(sent))
    leave_ranks()


def sent_in_a_step(sharding: str) -> Counter[str]:
    """Nothing of the models is left when it returns: freed behind the group, DDP would end the group itself.

    It holds the interpreter's lock then and joins gloo's threads, which may wait for that lock to release the dispatch
    mode that their work was started under.
    """
    student, teacher = sharded_gradients.models("packed")
    wrapped: torch.nn.Module = student
    if sharding == "ddp":
        wrapped = DistributedDataParallel(student)
    else:
        for model in (student, teacher):
            for layer in model.model.layers:
                fully_shard(layer, reshard_after_forward=True)
            fully_shard(model, reshard_after_forward=True)
    batch = pack(sharded_gradients.rows()[dist.get_rank()])
    with SentBytes() as counted:
        wrapped(batch=batch, targets=live_targets(teacher, batch))["loss_sum"].backward()
    return counted.sent
