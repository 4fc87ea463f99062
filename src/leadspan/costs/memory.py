"""Peak memory and traffic of a training step on one rank, in bytes, from shapes and its micro-batches.

A step has four moments at which memory can peak, and the largest counts: the teacher's forward pass; the loss, when
all activations of the student are held and a chunk of logits with its gradients exists; the backward pass, whose
activations go as the gradients of the weights come; and the optimiser. With gradient accumulation the gradients of the
micro-batches before are there at every moment.

Weights are float32 and AdamW keeps two moments of each trained weight (Rajbhandari et al., arXiv 1910.02054, section 3,
whose 16 bytes a parameter these are: 4 weights, 4 gradients, 8 optimiser). bfloat16 autocast adds a copy of every
linear weight that the graph holds. DDP adds its buckets, as large as the gradients
(`gradient_as_bucket_view=False`, PyTorch's DistributedDataParallel reference). FSDP2 divides weights, gradients and
moments among the ranks, and gathers two layers (the next is prefetched), one layer's gradients, and the root group of
embedding and head (PyTorch's `fully_shard` reference). Excluded: the device's context, the allocator's fragmentation,
and the workspaces of kernels.

The disk space of a run is that of its checkpoints and of its final student.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leadspan.costs.flops import ByPart, ExampleSize, ModelShape
from leadspan.settings import Count


class MemoryByPart(ByPart):
    """Memory of one rank at one moment, in bytes."""

    weights: Count = 0
    """Weights of the student, with the copies that autocast or sharding makes."""
    gradients: Count = 0
    """Gradients of the trained weights, with the buckets of data-parallel training."""
    optimizer: Count = 0
    """Moments of the optimiser."""
    activations: Count = 0
    """Activations of the layers of student or teacher, and the hidden states at weighted positions."""
    logits: Count = 0
    """Chunks of logits."""
    teacher: Count = 0
    """Weights of a live teacher."""
    process: Count = 0
    """Memory beyond the tensors, as calibrated: libraries, and blocks that the allocator keeps; 0 uncalibrated."""


Sharding = Literal["none", "ddp", "fsdp2"]

_WIDE, _NARROW, _MOMENTS = 4, 2, 8  # bytes a weight: float32, bfloat16, and AdamW's two moments in float32
NUM_CHECKPOINTS = 3
"""At most: the best one, the last one, and one that is being written."""


@dataclass(frozen=True, slots=True)
class ActivationBytes:
    """Bytes of one token in the layers below the head, and bytes that masks of sliding windows add.

    Attributes:
        retained: At the end of the forward pass: what backward needs.
        peak: At the highest moment of the forward and backward pass, `retained` included.
        window: Sliding window of the layers that have one; 0 where examples of any length have masks or scores of all
            pairs; None where none has.
        retained_pair: Masks of an example longer than the window, by pair of its positions (`T^2` in all), at the end
            of the forward pass.
        peak_pair: The same at the moment of `peak`.
        masked: What one token takes at the moment at which masks take most.
        masked_pair: Of the masks at that moment.
    """

    retained: int
    peak: int
    window: int | None = None
    retained_pair: float = 0.0
    peak_pair: float = 0.0
    masked: int = 0
    masked_pair: float = 0.0

    def of_batch(self, batch: "BatchSize") -> tuple[int, int]:
        """Bytes of a micro-batch at the end of the forward pass, and at the highest moment."""
        # A causal mask is implicit; only examples longer than a sliding window get a mask in memory, T x T.
        lengths = batch.lengths or (batch.tokens,)
        pairs = [n * n for n in lengths if self.window is not None and n > self.window]
        # Attention makes the mask of one example at a time.
        all_masks, one_mask = self.retained_pair * sum(pairs), max(pairs, default=0)
        peak = max(
            token * batch.tokens + round(all_masks + (pair - self.retained_pair) * one_mask)
            for token, pair in ((self.peak, self.peak_pair), (self.masked, self.masked_pair))
        )
        return self.retained * batch.tokens + round(all_masks), peak


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Of one micro-batch on one rank.

    Attributes:
        tokens: Through the student's forward pass.
        weighted: Positions with a loss.
        scored: Positions that are scored before some are selected; 0 where none are.
        lengths: Tokens of its examples; where they are left out it is one example.
    """

    tokens: int
    weighted: int
    scored: int = 0
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, examples: Sequence[ExampleSize]) -> "BatchSize":
        """A micro-batch of examples."""
        sums = (sum(example[i] for example in examples) for i in range(3))
        return cls(*sums, lengths=tuple(sorted(example.tokens for example in examples)))


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Everything that the peak depends on, except the batch.

    Attributes:
        student: Its shape, adapters included.
        teacher: Shape of a live teacher, or of its head where hidden states are stored; or None.
        student_activations: Bytes a token.
        teacher_activations: Bytes a token of a live teacher's forward pass, or None.
        use_bf16: bfloat16 autocast, and a bfloat16 teacher; else float32.
        chunk_tokens: Positions of a chunk of the loss.
        accumulates: Whether a step has several micro-batches.
        num_ranks: Ranks.
        sharding: What they share.
    """

    student: ModelShape
    teacher: ModelShape | None
    student_activations: ActivationBytes
    teacher_activations: ActivationBytes | None
    use_bf16: bool
    chunk_tokens: int
    accumulates: bool = False
    num_ranks: int = 1
    sharding: Sharding = "none"

    def peak(self, *batches: BatchSize) -> MemoryByPart:
        """Memory by part at the moment of a step at which it is highest, of the micro-batch that needs most."""
        phases = [memory for batch in dict.fromkeys(batches) for memory in self.by_phase(batch).values()]
        return max(phases, key=lambda memory: memory.total)

    def by_phase(self, batch: BatchSize) -> dict[str, MemoryByPart]:
        """Memory by part in each phase of a step that can hold the peak."""
        student, teacher = self.student, self.teacher
        width = _NARROW if self.use_bf16 else _WIDE
        casts = _NARROW * (student.linear_params + student.head_params) if self.use_bf16 else 0
        gradients = self._share(_WIDE * student.trained_params)
        earlier = gradients if self.accumulates else 0  # of the micro-batches before
        # The chunked loss forms it in the forward pass; a frozen head has none.
        of_head = 0 if student.adapter_params else _WIDE * student.head_params
        retained, peak = self.student_activations.of_batch(batch)
        # With a selection by scores: the states of all scored positions, and copies of the selected.
        states = batch.scored + batch.weighted
        # The states of all positions, and the gradient of those with a loss.
        hidden = (states + batch.weighted) * student.hidden_size * width
        vocab_size = student.vocab_size
        if teacher is not None:
            hidden += states * teacher.hidden_size * width
            # Each has a chunk of logits, as wide as the wider of the two.
            vocab_size = 2 * max(vocab_size, teacher.vocab_size)
        rows = min(self.chunk_tokens, max(batch.weighted, batch.scored))
        # float32, and a tenth as an allowance for what the row part makes block by block.
        logits = rows * vocab_size * _WIDE * 11 // 10
        # Backward begins with all activations, and scales the head's gradient into a second copy. It ends with all
        # gradients and one layer's activations, where a tied head's gradient is added to the embedding's.
        start = self._always(earlier + 2 * of_head, peak, casts=casts)
        end = self._always(gradients + (of_head if student.is_tied else 0), peak - retained)
        phases = {
            "loss": self._always(earlier + of_head, retained + hidden, logits, casts),
            "backward": max(start, end, key=lambda memory: memory.total),
            "optimizer": self._always(gradients),
        }
        if self.teacher_activations is not None:
            phases["teacher"] = self._always(earlier, self.teacher_activations.of_batch(batch)[1])
        return phases

    def _always(self, gradients: int, activations: int = 0, logits: int = 0, casts: int = 0) -> MemoryByPart:
        student, teacher, width = self.student, self.teacher, _NARROW if self.use_bf16 else _WIDE
        teacher_bytes = 0 if teacher is None else width * teacher.num_params
        gathered = 0
        if self.sharding == "fsdp2":
            # The root's weights (embedding and head) stay gathered, the next layer is prefetched, and one layer's
            # gradient is reduced at a time.
            gathered = _WIDE * (student.head_params * (1 if student.is_tied else 2) + 3 * student.layer_params)
            # As of the student, without a gradient; a stored head is whole on every rank.
            if teacher is not None and not teacher.is_head_only:
                root = teacher.head_params * (1 if teacher.is_tied else 2)
                teacher_bytes = self._share(teacher_bytes) + width * (root + 2 * teacher.layer_params)
        return MemoryByPart(
            # float32 weights are sharded; what FSDP gathers and what autocast casts come on top.
            weights=self._share(_WIDE * (student.num_params + student.adapter_params)) + casts + gathered,
            # DDP's buckets are as large as the gradients.
            gradients=gradients + (_WIDE * student.trained_params if self.sharding == "ddp" else 0),
            optimizer=self._share(_MOMENTS * student.trained_params),
            activations=activations,
            logits=logits,
            teacher=teacher_bytes,
        )

    def _share(self, size: int) -> int:
        return math.ceil(size / self.num_ranks) if self.sharding == "fsdp2" else size


def disk_bytes(student: ModelShape, num_checkpoints: int = NUM_CHECKPOINTS) -> int:
    """Bytes of the checkpoints of a run, which hold the trained weights, and of its final student."""
    return num_checkpoints * (_WIDE + _MOMENTS) * student.trained_params + _WIDE * student.num_params


TeacherPlacement = Literal["beside", "ranks", "store"]
"""`beside`: in the memory of every rank, sharded if the student is. `ranks`: on devices of its own, which send final
hidden states. `store`: nowhere; its targets are read from files."""


class Traffic(ByPart):
    """Bytes that one rank sends in one optimiser step."""

    gradients: Count = 0
    """Of the trained weights, reduced or scattered."""
    weights: Count = 0
    """Of the student, gathered."""
    teacher: Count = 0
    """Weights of the teacher, gathered; or its hidden states, received."""


def traffic(
    memory: MemoryModel, teacher: ModelShape | None, placement: TeacherPlacement, batches: Sequence[BatchSize]
) -> Traffic:
    """Bytes that one rank sends to others in an optimiser step of some micro-batches.

    Collectives are counted as their ring algorithms send them (Patarasuk and Yuan, Bandwidth optimal all-reduce
    algorithms for clusters of workstations, 2009): of `S` bytes and `N` ranks, an all-gather or a reduce-scatter takes
    `(N - 1) / N * S` of every rank, an all-reduce twice that. DDP reduces the gradients once a step. FSDP2 as
    accelerate sets it up (`reshard_after_forward`) gathers all weights for the forward pass and again for the backward
    pass of every micro-batch, and scatters the gradients once a step; a sharded teacher is gathered for its forward
    pass, its head once more for the loss. A tied head is one weight. Sums of a few numbers, buffers and the padding of
    uneven shards are left out.

    Args:
        memory: The student, how it is sharded, and over how many ranks.
        teacher: All of the teacher; None for none.
        placement: Where it is.
        batches: The rank's micro-batches of the step.
    """
    student, ranks, hidden = memory.student, memory.num_ranks, 0
    narrow = _NARROW if memory.use_bf16 else _WIDE  # bytes of a number in the type of the run
    if teacher is not None and placement == "ranks":
        # A token goes there as an id of 8 bytes, and a hidden state comes back for every position with a loss.
        hidden = sum(8 * batch.tokens + narrow * teacher.hidden_size * batch.weighted for batch in batches)
    if memory.sharding == "none":
        return Traffic(teacher=hidden)

    def sent(num_bytes: int) -> int:
        return num_bytes * (ranks - 1) // ranks

    if memory.sharding == "ddp":
        # An all-reduce is a reduce-scatter and an all-gather.
        return Traffic(gradients=2 * sent(_WIDE * student.trained_params), teacher=hidden)
    # accelerate lets FSDP2 gather and reduce in the type of the run.
    weights = narrow * (student.num_params + student.adapter_params)
    if teacher is not None and placement == "beside":
        hidden = len(batches) * sent(narrow * (teacher.num_params + teacher.head_params))
    return Traffic(
        gradients=sent(narrow * student.trained_params), weights=2 * len(batches) * sent(weights), teacher=hidden
    )
