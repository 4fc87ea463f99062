"""Bytes that one rank sends to others in an optimiser step, from shapes and its micro-batches.

Collectives are counted as their ring algorithms send them (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms
for clusters of workstations, 2009): of `S` bytes and `N` ranks, an all-gather or a reduce-scatter takes
`(N - 1) / N * S` of every rank, an all-reduce twice that. DDP reduces the gradients once a step. FSDP2 as accelerate
sets it up (`reshard_after_forward`) gathers all weights for the forward pass and again for the backward pass of every
micro-batch, and scatters the gradients once a step; a sharded teacher is gathered for its forward pass, its head once
more for the loss. A tied head is one weight. Sums of a few numbers, buffers and the padding of uneven shards are left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from leadspan.costs.flops import ModelShape
from leadspan.costs.memory import BatchSize, MemoryModel

TeacherPlacement = Literal["beside", "ranks", "store"]
"""`beside`: in the memory of every rank, sharded if the student is. `ranks`: on devices of its own, which send final
hidden states. `store`: nowhere; its targets are read from files."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one rank sends in one optimiser step.

    Attributes:
        gradients: Of the trained weights, reduced or scattered.
        weights: Of the student, gathered.
        teacher: Weights of the teacher, gathered; or its hidden states, received.
    """

    gradients: int = 0
    weights: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        """Sum over the parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def traffic(
    memory: MemoryModel, teacher: ModelShape | None, placement: TeacherPlacement, batches: Sequence[BatchSize]
) -> Traffic:
    """Bytes of one rank in a step of some micro-batches.

    Args:
        memory: The student, how it is sharded, and over how many ranks.
        teacher: All of the teacher; None for none.
        placement: Where it is.
        batches: The rank's micro-batches of the step.
    """
    student, ranks = memory.student, memory.num_ranks
    # Bytes of a number in the type of the run.
    narrow = 2 if memory.use_bf16 else 4
    hidden = 0
    if teacher is not None and placement == "ranks":
        # A token goes there as an id of 8 bytes, and a hidden state comes back for every position with a loss.
        hidden = sum(8 * batch.tokens + narrow * teacher.hidden_size * batch.weighted for batch in batches)
    if memory.sharding == "none":
        return Traffic(teacher=hidden)

    def sent(num_bytes: int) -> int:
        return num_bytes * (ranks - 1) // ranks

    if memory.sharding == "ddp":
        # An all-reduce is a reduce-scatter and an all-gather.
        return Traffic(gradients=2 * sent(4 * student.trained_params), teacher=hidden)
    # accelerate lets FSDP2 gather and reduce in the type of the run.
    weights = narrow * (student.num_params + student.adapter_params)
    if teacher is not None and placement == "beside":
        hidden = len(batches) * sent(narrow * (teacher.num_params + teacher.head_params))
    return Traffic(sent(narrow * student.trained_params), 2 * len(batches) * sent(weights), hidden)
