"""Floating-point operations of a training step, in integers, from shapes and each example's own length.

Rules: a linear layer costs `2 * params` per token forward; the two attention products of a causal layer cost
`4 * heads * head_dim * sum_t min(t, window)` with `t` the number of positions seen; the head costs `2 d V` per
*weighted* position; backward costs twice the forward, recomputation (of all but each layer's last projection) one
more. Embedding look-ups, norms, activations and softmax are left out, as in Kaplan et al. (arXiv 2001.08361, section
2.1), whose `6 N D` this refines: attention is counted exactly for every length instead of being ignored, and the head
only where there is a loss.

Grouped-query attention has smaller key and value projections (fewer `linear_params`), and the same products: every
query head attends. A token of a mixture of experts passes the router and `k` of `E` experts (Shazeer et al.,
arXiv 1701.06538, section 2). Frozen weights under adapters (LoRA, arXiv 2106.09685) have no weight gradient: twice the
forward in all, while the adapters cost three times theirs.

A layer with a state (Mamba, arXiv 2312.00752; gated linear attention, arXiv 2312.06635) costs six operations for each
element of it and token, in its recurrent form; kernels that work in chunks do more, of a cheaper kind. So its cost is
linear in the length, and is counted with the linear layers.

`torch.utils.flop_counter.FlopCounterMode` counts the same but for attention: of a fused kernel it takes all `T^2`
pairs, and five products backward instead of four, since such kernels compute the scores anew (Dao et al.,
arXiv 2205.14135, section 3.1). Causal pairs are `T (T + 1) / 2`.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from leadspan.settings import Count, Settings

_PER_STATE = 6  # an element of a state is decayed, added to by an outer product, and read by an inner one


class ByPart(Settings):
    """Integer amounts of the parts of one thing."""

    @property
    def total(self) -> int:
        """Sum over the parts."""
        return sum(self.model_dump().values())


class FlopsByPart(ByPart):
    """Floating-point operations of a training run."""

    student_body: Count = 0
    """Linear layers of the student, forward and backward."""
    student_attention: Count = 0
    """Attention products of the student, forward and backward."""
    student_head: Count = 0
    """Output projection of the student at weighted positions, forward and backward."""
    teacher_body: Count = 0
    """Linear layers of the teacher, forward."""
    teacher_attention: Count = 0
    """Attention products of the teacher, forward."""
    teacher_head: Count = 0
    """Output projection of the teacher at weighted positions, forward."""
    recomputation: Count = 0
    """Second student forward of gradient checkpointing."""
    rollout: Count = 0
    """Student: prompts and new tokens of rollouts, forward."""

    @classmethod
    def added(cls, several: Iterable["FlopsByPart"]) -> "FlopsByPart":
        """The sum of several, part by part."""
        rows = [flops.model_dump() for flops in several]
        return cls(**{part: sum(row[part] for row in rows) for part in cls.model_fields})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The figures of a model that the counts need.

    Attributes:
        linear_params: Weights of the linear layers a token passes, head and embeddings left out; of a mixture of
            experts those of the router and of the experts it is sent to.
        attention_dims: Per attention layer `heads * head_dim`.
        windows: Per attention layer the sliding window, or None.
        hidden_size: Width of the final hidden states.
        vocab_size: Rows of the head.
        num_params: All weights, each once; adapters left out.
        is_tied: Whether the head is the embedding.
        layer_params: Weights of the largest layer, all of its experts included.
        last_params: Weights of the layers' last projections, where these are added to the residual as they are:
            backward needs no such output, and PyTorch's checkpointing stops before it.
        adapter_params: Weights of low-rank adapters; above 0, they alone are trained.
        state_size: Elements of the states that layers other than attention carry from a token to the next.
    """

    linear_params: int
    attention_dims: tuple[int, ...]
    windows: tuple[int | None, ...]
    hidden_size: int
    vocab_size: int
    num_params: int
    is_tied: bool = False
    layer_params: int = 0
    last_params: int = 0
    adapter_params: int = 0
    state_size: int = 0

    @property
    def head_params(self) -> int:
        """Weights of the projection to the vocabulary."""
        return self.hidden_size * self.vocab_size

    @property
    def is_head_only(self) -> bool:
        """Whether there is no body: hidden states come from a store."""
        return self.num_params == self.head_params

    @property
    def trained_params(self) -> int:
        """Weights that get a gradient."""
        return self.adapter_params or self.num_params


Shapes = tuple[ModelShape, ModelShape | None]
"""Shapes of a student and of the part of its teacher that computes; None without one."""


class ExampleSize(NamedTuple):
    """The figures of an example that the counts need.

    Attributes:
        tokens: Through the forward pass.
        weighted: Positions with a loss.
        scored: Positions that the loss scores, without gradients, before some are selected; 0 where none are.
    """

    tokens: int
    weighted: int
    scored: int = 0


def head_only(hidden_size: int, vocab_size: int) -> ModelShape:
    """The head of a teacher whose final hidden states are read from a store: weights and logits, no body."""
    return ModelShape(0, (), (), hidden_size, vocab_size, num_params=hidden_size * vocab_size)


def positions_seen(length: int, window: int | None) -> int:
    """Sum over positions of how many positions each attends to.

    >>> positions_seen(4, None), positions_seen(4, 2)
    (10, 7)
    """
    # Position t sees min(t + 1, window) positions: a triangle, then a band.
    inside = length if window is None else min(length, window)
    return inside * (inside + 1) // 2 + (length - inside) * inside


def forward_body(shape: ModelShape, length: int) -> int:
    """Linear layers and states of one example, forward: `(2 * linear_params + 6 * state_size) * length`."""
    return (2 * shape.linear_params + _PER_STATE * shape.state_size) * length


# Many examples share a length, and every trial of a study counts them again.
@functools.lru_cache(maxsize=1 << 16)
def forward_attention(shape: ModelShape, length: int) -> int:
    """Scores and weighted values of one example, forward: `4 * heads * head_dim * positions_seen` per layer."""
    return sum(
        4 * dim * positions_seen(length, window)
        for dim, window in zip(shape.attention_dims, shape.windows, strict=True)
    )


def forward_head(shape: ModelShape, num_positions: int) -> int:
    """Projection to the vocabulary at weighted positions, forward: `2 * d * V * num_positions`."""
    return 2 * shape.head_params * num_positions


def rollout_flops(student: ModelShape, rollouts: Iterable[tuple[int, int]]) -> int:
    """Cost of drawing rollouts with a cache: every token but the last passes the body once, every new one the head.

    Args:
        student: Shape of the student.
        rollouts: Tokens of the prompt, and new tokens, of each.
    """
    total = 0
    for prompt, new in rollouts:
        length = prompt + new - 1  # the last new token is not read again
        linear = forward_body(student, length) + 2 * student.adapter_params * length
        total += linear + forward_attention(student, length) + forward_head(student, new)
    return total


def training_flops(
    student: ModelShape, teacher: ModelShape | None, examples: Iterable[ExampleSize], recompute: bool
) -> FlopsByPart:
    """Cost of passing examples once through a training step.

    Args:
        student: Shape of the student; with adapters, its own weights are frozen.
        teacher: Shape of a live teacher, or of its head where hidden states are stored; None for none.
        examples: Size of each example; scoring costs the heads once more, forward.
        recompute: Whether gradient checkpointing repeats the student's forward pass.
    """
    flops = dict.fromkeys(FlopsByPart.model_fields, 0)
    # Forward, gradient of the inputs, gradient of the weights; frozen weights have no third.
    passes = 2 if student.adapter_params else 3
    # Checkpointing stops before a layer's last projection, whose output backward does not need.
    unneeded = 0 if student.adapter_params else student.last_params  # an adapter comes after the projection it adapts
    for length, weighted, scored in examples:
        body, attention = forward_body(student, length), forward_attention(student, length)
        adapters = 2 * student.adapter_params * length
        flops["student_body"] += passes * body + 3 * adapters
        # Attention has no weights, but two operands: its backward pass costs twice the forward one in any case.
        flops["student_attention"] += 3 * attention
        flops["student_head"] += passes * forward_head(student, weighted) + forward_head(student, scored)
        flops["recomputation"] += recompute * (body + adapters + attention - 2 * unneeded * length)
        if teacher is not None:
            flops["teacher_body"] += forward_body(teacher, length)
            flops["teacher_attention"] += forward_attention(teacher, length)
            flops["teacher_head"] += forward_head(teacher, weighted + scored)
    return FlopsByPart(**flops)


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one optimiser step does on all ranks: tokens through the student, weighted positions, operations."""

    examples: int
    tokens: int
    weighted: int
    flops: FlopsByPart

    @classmethod
    def of(cls, sizes: Sequence[ExampleSize], flops: FlopsByPart) -> "StepCounts":
        """Those of a step with examples of some sizes."""
        return cls(len(sizes), sum(size.tokens for size in sizes), sum(size.weighted for size in sizes), flops)
