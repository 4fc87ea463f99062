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

`torch.utils.flop_counter.FlopCounterMode` counts the same but for attention: of a fused kernel it takes all `T^2`
pairs, and five products backward instead of four, since such kernels compute the scores anew (Dao et al.,
arXiv 2205.14135, section 3.1). Causal pairs are `T (T + 1) / 2`.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from leadspan.results import FlopsByPart


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the counts need to know of a model.

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

    @property
    def head_params(self) -> int:
        """Weights of the projection to the vocabulary."""
        return self.hidden_size * self.vocab_size

    @property
    def trained_params(self) -> int:
        """Weights that get a gradient."""
        return self.adapter_params or self.num_params


class ExampleSize(NamedTuple):
    """What the counts need to know of an example.

    Attributes:
        tokens: Through the forward pass.
        weighted: Positions with a loss.
        scored: Positions that the loss scores, without gradients, before some are selected; 0 where none are.
    """

    tokens: int
    weighted: int
    scored: int = 0


def positions_seen(length: int, window: int | None) -> int:
    """Sum over positions of how many positions each attends to.

    >>> positions_seen(4, None), positions_seen(4, 2)
    (10, 7)
    """
    inside = length if window is None else min(length, window)
    return inside * (inside + 1) // 2 + (length - inside) * inside


def forward_body(shape: ModelShape, length: int) -> int:
    """Linear layers of one example, forward: `2 * linear_params * length`."""
    return 2 * shape.linear_params * length


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


def training_flops(
    student: ModelShape, teacher: ModelShape | None, examples: Iterable[ExampleSize], recompute: bool
) -> FlopsByPart:
    """Cost of passing examples once through a training step.

    Args:
        student: Shape of the student; with adapters, its own weights are frozen.
        teacher: Shape of a live teacher; None for none.
        examples: Size of each example; scoring costs the heads once more, forward.
        recompute: Whether gradient checkpointing repeats the student's forward pass.
    """
    parts = dict.fromkeys(FlopsByPart.model_fields, 0)
    passes = 2 if student.adapter_params else 3
    unneeded = 0 if student.adapter_params else student.last_params  # an adapter comes after the projection it adapts
    for length, weighted, scored in examples:
        body, attention = forward_body(student, length), forward_attention(student, length)
        adapters = 2 * student.adapter_params * length
        parts["student_body"] += passes * body + 3 * adapters
        parts["student_attention"] += 3 * attention
        parts["student_head"] += passes * forward_head(student, weighted) + forward_head(student, scored)
        parts["recomputation"] += recompute * (body + adapters + attention - 2 * unneeded * length)
        if teacher is not None:
            parts["teacher_body"] += forward_body(teacher, length)
            parts["teacher_attention"] += forward_attention(teacher, length)
            parts["teacher_head"] += forward_head(teacher, weighted + scored)
    return FlopsByPart(**parts)
